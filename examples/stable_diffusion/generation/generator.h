// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "generation/axes.h"
#include "generation/options.h"
#include "generation/parameters.h"
#include "pipeline/lora.h"
#include "support/images/image.h"

namespace generation {

/// A picture with the text that its file carries.
struct GeneratedImage {
  images::Image picture;
  std::string parameters;
  uint64_t seed = 0;
};

/// The picture of --image in the size of the result: its own size rounded down to multiples of
/// `factor`, resampled as diffusers does it, or filled and cut in the middle for a given size.
images::Image starting_picture(const images::Image& image, int64_t factor,
                               std::optional<int64_t> width, std::optional<int64_t> height);

/// The LoRA files of the prompt's tags, which leave the prompt, then those of --lora.
/// `known` are files that a PNG picture names.
std::vector<sd::LoRAChoice> choose_loras(const GenerationOptions& options,
                                         const std::vector<std::string>& known);

/// A pipeline with its LoRA files and all that --help promises about pictures.
class Generator {
 public:
  /// The processes of the group deal out the pictures, and all get all of them.
  Generator(const GenerationOptions& options, const std::vector<std::string>& known_loras,
            const distributed::Group& group = {});

  /// All pictures that the options ask for; the final latents go to --save_latents.
  std::vector<GeneratedImage> generate();
  /// One picture for each pair of values, on one sheet with labels.
  GeneratedImage generate_sheet(const std::vector<Axis>& axes);

  /// Things worth knowing before a long run, one a line.
  std::vector<std::string> notices() const;

 private:
  using Callback = std::function<void(int64_t done, int64_t total)>;
  sd::SampleResult sample(const GenerationOptions& options, uint64_t seed, const Callback& on);
  sd::SampleResult sample_dealt_out(const Callback& on);
  GeneratedImage described(const GenerationOptions& options, const at::Tensor& picture,
                           DrawnPicture about) const;

  GenerationOptions options_;  // what they leave to the model is filled in
  distributed::Group group_;
  sd::StableDiffusion pipeline_;
  std::vector<sd::LoRAChoice> choices_;
  sd::PipelineAdapters adapters_;
  torch::Tensor image_;
  uint64_t seed_;  // of all pictures, as asked for or a new one
};

}  // namespace generation
