// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/embeddings.h>

#include <optional>
#include <string>
#include <vector>

#include "training/options.h"
#include "training/run.h"
#include "training/task.h"

namespace training {

/// Textual inversion: finds vectors for a new word under which a frozen model draws the pictures.
/// Layer-wise, each cross attention of the UNet has vectors of its own. For SDXL both text encoders
/// learn some.
/// Papers: Gal et al. 2022, arXiv:2208.01618; layer-wise: Voynov et al. 2023, arXiv:2303.09522
class Inversion : public PictureTask {
 public:
  static constexpr const char* kFile = "learned_embeds.safetensors";

  /// Loads everything. The processes of the group share each batch.
  /// Errors: those of its parts; c10::ValueError if the initializer is not one token
  explicit Inversion(const InversionOptions& options, const distributed::Group& group = {});
  Inversion(const Inversion&) = delete;
  Inversion& operator=(const Inversion&) = delete;

  const Plan& plan() const override { return *plan_; }
  /// The word with its vectors as they are now.
  lightlora::LearnedEmbedding embedding() const;

  /// Writes learned_embeds.safetensors.
  void save(const std::string& folder) const override;
  void load(const std::string& folder) override;
  void after_step(int64_t step) override;
  /// Writes the model card, the sheet of pictures and, if the options ask for it, the whole model
  /// with the word.
  void finish() override;

 private:
  void learn_word();
  torch::Tensor initial_vectors(size_t encoder, const std::vector<int64_t>& layers) const;
  SampleOptions samples() const;

  const InversionOptions options_;
  std::optional<const Plan> plan_;
  // For each text encoder (n, width), or layer-wise (layers, n, width).
  std::vector<torch::Tensor> vectors_;
};

/// The command that draws with the word's file, for a shell.
std::string draw_command(const InversionOptions& options, const std::string& file);

/// Trains as the options say: everything that textual_inversion does.
/// Errors: c10::ValueError for options that do not go together; those of Inversion and train
Outcome train_inversion(const InversionOptions& options, const distributed::Group& group = {});

/// Writes a model in diffusers layout whose tokenizers and text encoders know a learned word; its
/// other parts are copied. What diffusers' script writes with --save_as_full_pipeline. Errors:
/// c10::ValueError if the model is no folder, the word is layer-wise, or the folder is the
///         model's own
void save_full_pipeline(const sd::StableDiffusion& pipeline,
                        const lightlora::LearnedEmbedding& word, const std::string& folder);
/// The same errors, before anything is learned.
void check_full_pipeline(const std::string& model, bool layerwise, const std::string& folder);

}  // namespace training
