// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/embeddings.h>

#include <memory>
#include <optional>
#include <string>

#include "pipeline/pipeline.h"
#include "training/common_flags.h"
#include "training/run.h"

namespace training {

/// The flags of textual_inversion, with the names and defaults of diffusers' script.
struct InversionFlags : CommonFlags {
  std::string train_data_dir, placeholder_token, initializer_token;
  std::string learnable_property = "object";
  int64_t num_vectors = 1, repeats = 100, save_steps = 500;
  bool layerwise = false, save_as_full_pipeline = false;

  InversionFlags();

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
};

void add_inversion_flags(cli::App& app, InversionFlags& flags);

/// Textual inversion: finds vectors for a new word under which a frozen model draws the pictures.
/// Layer-wise, each cross attention of the UNet has vectors of its own.
/// Papers: Gal et al. 2022, arXiv:2208.01618; layer-wise: Voynov et al. 2023, arXiv:2303.09522
class Inversion {
 public:
  /// The processes of the group share each batch.
  /// Errors: those of its parts; c10::ValueError if the initialiser is not one token
  explicit Inversion(InversionFlags& flags, const distributed::Group& group = {});

  Trainer& trainer() { return *trainer_; }
  RunParts run_parts(const std::string& settings);
  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  int64_t trained_values() const { return vectors_.numel(); }

  /// The word with its vectors as they are now.
  lightlora::LearnedEmbedding embedding() const;
  void save(const std::string& path) const;
  /// The models, of which no weight changes.
  sd::StableDiffusion& pipeline() { return *pipeline_; }

  static constexpr const char* kFile = "learned_embeds.safetensors";

 private:
  void learn_word();
  SampleSource make_source(std::vector<PictureFile> files);
  void load(const std::string& path);

  InversionFlags& flags_;
  std::optional<sd::StableDiffusion> pipeline_;
  torch::Tensor vectors_;  // (n, width) or (layers, n, width)
  std::unique_ptr<Trainer> trainer_;
  std::optional<ValidationLoss> validation_loss_;
  int64_t samples_per_epoch_ = 0;
};

}  // namespace training
