// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pipeline/adapters.h"
#include "training/dataset_config.h"
#include "training/model_card.h"
#include "training/options.h"
#include "training/run.h"
#include "training/task.h"

namespace training {

/// Adapters that know a subject from a few pictures. Prints notices about the pictures and what is
/// adapted.
/// Paper: Ruiz et al. 2022, arXiv:2208.12242
class DreamBooth : public PictureTask {
 public:
  static constexpr const char* kNativeFile = "lightlora.safetensors";
  static constexpr const char* kDiffusersFile = "pytorch_lora_weights.safetensors";

  /// Loads everything. The processes of the group share the drawing of class pictures, and every
  /// batch.
  /// Errors: as the parts; c10::Error if Ctrl-C came while class pictures were drawn
  explicit DreamBooth(const DreamBoothOptions& options, const distributed::Group& group = {});
  DreamBooth(const DreamBooth&) = delete;
  DreamBooth& operator=(const DreamBooth&) = delete;

  const Plan& plan() const override { return *plan_; }
  const sd::PipelineAdapters& adapters() const { return adapters_; }

  /// Writes lightlora.safetensors and pytorch_lora_weights.safetensors; the latter not for variants
  /// without factors, unless a rank is given.
  void save(const std::string& folder) const override;
  void load(const std::string& folder) override;
  /// Writes the model card and the sheet of validation pictures.
  void finish() override;

 private:
  std::vector<PictureFile> read_instance_pictures() const;
  std::vector<PictureFile> prepare_class_pictures(const distributed::Group& group) const;
  void learn_words();
  void adapt();
  void make_trainer(std::vector<PictureFile> files, std::vector<PictureFile> held_out,
                    std::vector<PictureFile> class_files, const distributed::Group& group);
  std::optional<lightlora::Components> exported(const lightlora::Components& trained) const;
  PromptStates encode_prompts(const std::vector<std::string>& captions, bool vary);

  // What the flags say, and over them a data set's file.
  DreamBooth(const DreamBoothOptions& options, DatasetConfig config,
             const distributed::Group& group);
  bool has_prior() const {
    return options_.prior.with_prior_preservation || !config_.regularization.empty();
  }

  const DreamBoothOptions options_;
  const DatasetConfig config_;
  const lightlora::Components start_;  // what init_from names
  std::vector<CardWord> words_;        // what learned_embeds names
  std::optional<const DreamBoothPlan> plan_;
  sd::PipelineAdapters adapters_;
};

/// The command that draws with a LoRA file of such a run, for a shell.
std::string draw_command(const DreamBoothOptions& options, const std::string& lora);

/// Trains as the options say: everything that train_dreambooth_lora does.
/// Errors: c10::ValueError for options that do not go together; those of DreamBooth and train
Outcome train_dreambooth(const DreamBoothOptions& options, const distributed::Group& group = {});

}  // namespace training
