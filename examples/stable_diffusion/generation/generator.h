// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "generation/axes.h"
#include "generation/options.h"
#include "generation/parameters.h"
#include "pipeline/embeddings.h"
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

/// The prompt as the text encoder gets it.
std::string without_tags(const GenerationOptions& options);

/// The LoRA files of the prompt's tags, which leave the prompt, of the picture that the options came
/// from, and of --lora.
std::vector<sd::LoRAChoice> choose_loras(const GenerationOptions& options);

/// How many pictures were drawn, and how many there should have been: Ctrl-C came in between.
struct Drawn {
  int64_t pictures = 0, asked = 0;
};

/// A pipeline with its LoRA files and all that --help promises about pictures.
class Generator {
 public:
  /// Gets each picture as soon as it and those before it are drawn, and says what to show about it.
  using Sink =
      std::function<std::string(const GeneratedImage& picture, int64_t index, int64_t count)>;
  /// Gets a sheet whenever another row is drawn, with empty places for the rest.
  using SheetSink = std::function<void(const GeneratedImage& sheet)>;

  /// The processes of the group deal out the pictures, and rank 0 gets all of them.
  Generator(const GenerationOptions& options, const distributed::Group& group = {});

  /// All pictures that the options ask for, --batch_size at a time; the final latents go to
  /// --save_latents.
  Drawn generate(const Sink& sink);
  /// One picture for each pair of values, on one sheet with labels.
  Drawn generate_sheet(const std::vector<Axis>& axes, const SheetSink& sink);

  /// Things worth knowing before a long run, one a line.
  std::vector<std::string> notices() const;

 private:
  using Callback = std::function<void(int64_t done, int64_t total)>;
  struct Run;
  sd::SampleResult sample(sd::SampleOptions sampling, const Callback& on);
  void hand_out(Run& run, const torch::Tensor& picture, int64_t index, const Sink& sink);
  void draw_round(Run& run, const Sink& sink);
  sd::SampleOptions part_of_batch(int64_t first, int64_t number) const;
  int64_t count() const;
  void add_unused(std::vector<std::string>& lines) const;
  void add_about_image(std::vector<std::string>& lines) const;
  bool uses_scheduler(const std::string& name) const;
  bool guides() const;
  void draw_cells(const std::vector<Axis>& axes, size_t begin, std::vector<at::Tensor>& cells);
  GeneratedImage sheet_of(const std::vector<Axis>& axes,
                          const std::vector<images::Image>& cells) const;
  GeneratedImage described(const GenerationOptions& options, const at::Tensor& picture,
                           DrawnPicture about) const;

  GenerationOptions options_;  // what they leave to the model is filled in
  distributed::Group group_;
  sd::StableDiffusion pipeline_;
  std::vector<sd::LoRAChoice> choices_;
  sd::AppliedLoRAs loras_;
  std::vector<sd::BundledWord> bundled_;  // words in LoRA files
  torch::Tensor image_;
  uint64_t seed_;  // of all pictures, as asked for or a new one
};

}  // namespace generation
