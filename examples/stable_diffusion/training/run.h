// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "training/checkpoint.h"
#include "training/options.h"
#include "training/task.h"

namespace training {

/// How a run ended.
struct Outcome {
  int64_t steps = 0;      ///< done in all
  bool finished = false;  ///< false: Ctrl-C came, and there is a checkpoint to go on from
};

/// Trains a task to its end, or until Ctrl-C, and writes what it learned into the output folder,
/// with the log, checkpoints and validations on the way, and config.toml, which repeats the run.
/// Goes on from the checkpoint that the options name, or from the last one if torchrun has started
/// the processes anew.
/// Errors: c10::Error if there is no such checkpoint or it is of another run, or if a restart could
///         take an earlier run's checkpoint for its own; those of Engine::step, after which
///         earlier checkpoints are as they were
Outcome train(Task& task, const RunOptions& options);

/// Settles what options leave open, takes the output folder for this run alone, and trains a task of
/// them: `train_as<DreamBooth>(options, group)`.
/// Errors: those of the options, of `OutputFolder`, of the task and of `train`
template <typename Learned, typename Options>
Outcome train_as(const Options& given, const distributed::Group& group) {
  given.check();
  Options options = given;
  settle_seed(options, group);
  settle_precision(options, group);
  std::optional<OutputFolder> folder;
  if (group.is_main()) {
    const bool resumes = !options.run.resume_from_checkpoint.empty();
    folder.emplace(options.run, resumes || group.restarts() > 0 || group.may_restart());
  }
  Learned task(options, group);
  return train(task, options.run);
}

}  // namespace training
