// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "training/tensorboard.h"

namespace training {

/// Named numbers of one step.
using Numbers = std::vector<std::pair<std::string, double>>;

/// What a run leaves behind to look at: `metrics.jsonl`, one JSON object a line, and TensorBoard's
/// event files.
class RunLog {
 public:
  /// Drops everything: what a process has that is not rank 0.
  RunLog() = default;
  /// A run that goes on at `first_step` keeps the lines up to there and drops later ones, which
  /// will come again. No event file if `tensorboard_folder` is empty.
  RunLog(const std::string& output_dir, const std::string& tensorboard_folder, int64_t first_step);

  void add(int64_t step, const Numbers& numbers);
  /// A picture that was written to a PNG file.
  void add_picture(const std::string& tag, const std::string& path, int64_t step);

 private:
  std::string metrics_path_;
  std::ofstream metrics_;
  std::optional<TensorBoardWriter> tensorboard_;
};

}  // namespace training
