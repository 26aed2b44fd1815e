// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "pipeline/pipeline.h"
#include "training/run_flags.h"
#include "training/run_log.h"
#include "training/trainer.h"
#include "training/validation.h"

namespace training {

/// What a run needs beside its trainer.
struct RunParts {
  RunFlags flags;
  int64_t steps = 0;              ///< where it ends
  int64_t validation_interval = 0;  ///< steps between two validations; 0: none
  std::string settings;           ///< the resolved configuration, kept in checkpoints
  /// Writes what is learned into a folder, as its user wants it, and reads it back.
  std::function<void(const std::string& folder)> save_weights, load_weights;
  std::function<void(int64_t step)> after_step;  ///< may be empty
  std::optional<ValidationLoss> validation_loss;
  std::optional<ValidationPictures> validation_pictures;
  sd::StableDiffusion* pipeline = nullptr;  ///< for the pictures
};

/// One training run from its first step, or a checkpoint, to its end: steps, progress, logs,
/// checkpoints and validation.
class Run {
 public:
  Run(Trainer& trainer, RunParts parts);

  /// Goes to the checkpoint that the flags name, if they name one, or to the last one if torchrun
  /// has started the processes anew. Rank 0 reads it for all. Prints what it does.
  /// Errors: c10::Error if there is none of that name or it is of another run, or if a restart could
  /// take an earlier run's checkpoint for its own
  void resume();

  /// Trains to the end, or until Ctrl-C, and says whether the end was reached. After Ctrl-C there is
  /// a checkpoint of the last step. Errors: as Trainer::step; earlier checkpoints stay
  bool train();

 private:
  void find_and_load();
  void require_finite() const;
  void load_checkpoint(const std::string& folder);
  void save_checkpoint();
  void validate(RunLog& log);
  void report(RunLog& log, const StepReport& step);
  bool due(int64_t interval) const { return interval > 0 && trainer_.steps_done() % interval == 0; }

  Trainer& trainer_;
  RunParts parts_;
  double smoothed_loss_ = 0;
  int64_t last_checkpoint_ = -1;
};

}  // namespace training
