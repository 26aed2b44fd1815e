// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"
#include "training/plan.h"
#include "training/run_log.h"
#include "training/trainer.h"
#include "training/validation.h"

namespace training {

/// The states of texts from text encoders that train.
PromptStates trained_prompts(sd::StableDiffusion& pipeline, int64_t clip_skip, int64_t chunks = 1);

/// What a run learns. `train` drives it.
class Task {
 public:
  virtual ~Task() = default;

  virtual Engine& engine() = 0;
  virtual const Plan& plan() const = 0;

  /// What is learned from, by name: a run that goes on compares these with its checkpoint's.
  virtual const std::map<std::string, std::string>& fingerprints() const = 0;

  /// Writes what was learned into a folder, as its user wants it, and reads it back.
  virtual void save(const std::string& folder) const = 0;
  virtual void load(const std::string& folder) = 0;

  /// The rest is asked of rank 0 alone: after each step, when a validation is due, and after the
  /// last step, when the results are saved.
  virtual void after_step(int64_t /*step*/) {}
  virtual void validate(RunLog& /*log*/) {}
  virtual void finish() {}
};

/// A task that learns from pictures through the frozen UNet of a pipeline.
class PictureTask : public Task {
 public:
  Engine& engine() override { return *trainer_; }
  Trainer& trainer() { return *trainer_; }
  sd::StableDiffusion& pipeline() { return *pipeline_; }
  const std::map<std::string, std::string>& fingerprints() const override { return fingerprints_; }

  /// A loss of fixed noise and pictures of one prompt, as far as the options ask for them.
  void validate(RunLog& log) override;
  /// The validation pictures on one sheet.
  void finish() override;

 protected:
  /// Loads the models as they are before training.
  void load_pipeline(const TrainingOptions& options);
  /// What `make_plan` wants to know; for after the pipeline is loaded.
  RunFacts facts(const std::vector<PictureFile>& files, const std::vector<PictureFile>& held_out,
                 const distributed::Group& group,
                 const std::vector<PictureFile>& class_files = {}) const;
  /// The files as samples; `name` is for messages.
  /// Errors: c10::Error naming a file that is damaged
  SampleSource make_source(const std::string& name, std::vector<PictureFile> files,
                           const TrainingOptions& options, const SampleOptions& samples);

  std::optional<sd::StableDiffusion> pipeline_;
  std::map<std::string, std::string> fingerprints_;
  std::optional<ValidationLoss> validation_loss_;
  std::optional<ValidationPictures> validation_pictures_;
  std::unique_ptr<Trainer> trainer_;
};

/// Draws the seed of a run that asked for a new one, on rank 0 for all, and says which it is; a run
/// that goes on has the seed that it had.
void settle_seed(TrainingOptions& options, const distributed::Group& group);

/// Chooses the precision of a run that left it open, on rank 0 for all: what its device is fast in;
/// a run that goes on has the one that it had.
void settle_precision(TrainingOptions& options, const distributed::Group& group);

/// What all tasks tell their trainer.
TrainerOptions trainer_options(const TrainingOptions& options, const distributed::Group& group);

}  // namespace training
