// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"
#include "training/adapters.h"
#include "training/flags.h"
#include "training/run.h"

namespace training {

/// A DreamBooth run as its flags describe it: pictures, models, adapters and trainer. Prints notices
/// about the pictures and what is adapted.
class DreamBooth {
 public:
  /// Loads everything and fills in the flags that depend on it. `flags` must outlive the object.
  /// The processes of the group share the drawing of class pictures, and every batch.
  /// Errors: as the parts; c10::Error if Ctrl-C came while class pictures were drawn
  DreamBooth(Flags& flags, const distributed::Group& group);
  DreamBooth(const DreamBooth&) = delete;
  DreamBooth& operator=(const DreamBooth&) = delete;

  Trainer& trainer() { return *trainer_; }
  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  /// What a Run needs; `settings` is the resolved configuration.
  RunParts run_parts(const std::string& settings);

  /// Writes lightlora.safetensors and pytorch_lora_weights.safetensors into a folder.
  void save_weights(const std::string& folder) const;
  /// Puts back what lightlora.safetensors of a folder holds.
  void load_weights(const std::string& folder);

  static constexpr const char* kNativeFile = "lightlora.safetensors";
  static constexpr const char* kDiffusersFile = "pytorch_lora_weights.safetensors";

 private:
  bool validates() const { return validation_interval_ > 0; }
  void prepare_class_pictures() const;
  void adapt();
  void learn_words();
  SampleSource make_source(std::vector<PictureFile> files, const SampleOptions& options);
  PromptStates encode_prompts(const std::vector<std::string>& captions);

  Flags& flags_;
  distributed::Group group_;
  lightlora::Components start_;  // what --init_from names
  std::optional<sd::StableDiffusion> pipeline_;
  std::optional<Adapters> adapters_;
  std::optional<ValidationLoss> validation_loss_;
  std::unique_ptr<Trainer> trainer_;
  int64_t samples_per_epoch_ = 0, validation_interval_ = 0;
};

}  // namespace training
