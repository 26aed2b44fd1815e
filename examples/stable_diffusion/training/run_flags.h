// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "support/cli/app.h"

namespace training {

/// The flags that say what a run saves and shows on its way.
struct RunFlags {
  std::string output_dir;
  int64_t checkpointing_steps = 500;
  std::optional<int64_t> checkpoints_total_limit;
  std::string resume_from_checkpoint;

  std::string report_to = "tensorboard", logging_dir = "logs";
  std::string validation_prompt;
  int64_t num_validation_images = 4, validation_epochs = 50;
  std::optional<int64_t> validation_steps;

  /// Where TensorBoard's files go; empty for none.
  std::string tensorboard_folder() const;
  /// Steps between two validations; 0: there are none.
  int64_t validation_interval(int64_t steps_per_epoch, bool has_split) const;
};

void add_run_flags(cli::App& app, RunFlags& flags);

}  // namespace training
