// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/state.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/cli/config.h"
#include "training/options.h"

namespace training {

/// What a plan depends on beside the options.
struct RunFacts {
  int64_t resolution = 512;       ///< the model's own, in pixels
  int64_t samples_per_epoch = 0;  ///< pictures, each as often as it repeats
  bool held_out = false;          ///< whether there are pictures for a validation loss
  int64_t processes = 1;
};

/// A run as it will be: everything that the options leave open is decided here.
struct Plan {
  std::string program;  ///< whose flags the settings are
  /// All flags, with what was decided in place of what was left open: they repeat the run.
  std::vector<cli::Setting> settings;

  int64_t resolution = 0;
  int64_t samples_per_epoch = 0, processes = 1;
  int64_t batch_size = 0, accumulated_batches = 0, total_batch_size = 0;  ///< samples of one update
  int64_t steps = 0;                                                      ///< where the run ends
  int64_t validation_interval = 0;   ///< steps between two validations; 0: none
  double learning_rate = 0;          ///< the peak
  std::vector<std::string> notices;  ///< what is odd about it, one a line
  bool checkpoint_at_end = false;    ///< for a run that a longer one can go on from
  /// What goes on with the run when it was stopped.
  std::string goes_on_with = "the same command with --resume_from_checkpoint latest";
};

/// The plan of a DreamBooth run, which can go on from the adapters of a file.
struct DreamBoothPlan : Plan {
  AdapterOptions adapter;  ///< with what the file says
};

DreamBoothPlan make_plan(DreamBoothOptions options, const RunFacts& facts,
                         const lightlora::Components& start);
Plan make_plan(InversionOptions options, const RunFacts& facts);

/// Flags that have no effect, or an odd one, beside others, one a line.
std::vector<std::string> unused_flags(const TrainingOptions& options);
std::vector<std::string> unused_flags(const DreamBoothOptions& options);
std::vector<std::string> unused_flags(const InversionOptions& options);

/// The learning rates of a planned run.
LearningRate schedule_of(const OptimizationOptions& options, const Plan& plan);

}  // namespace training
