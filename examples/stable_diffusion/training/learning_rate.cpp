// SPDX-License-Identifier: Apache-2.0
#include "training/learning_rate.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace training {

const std::vector<std::string>& LearningRate::schedules() {
  static const std::vector<std::string> names{"constant", "constant_with_warmup",
                                              "linear",   "cosine",
                                              "cosine_with_restarts", "polynomial"};
  return names;
}

LearningRate::LearningRate(std::string schedule, double base, int64_t warmup_steps,
                           int64_t total_steps, double cycles, double power)
    : schedule_(std::move(schedule)),
      base_(base),
      warmup_(warmup_steps),
      total_(total_steps),
      cycles_(cycles),
      power_(power) {
  std::string known;
  for (const auto& name : schedules()) known += (known.empty() ? "" : ", ") + name;
  TORCH_CHECK_VALUE(
      std::find(schedules().begin(), schedules().end(), schedule_) != schedules().end(),
      "--lr_scheduler: expected one of ", known, ", got '", schedule_, "'");
}

double LearningRate::at(int64_t step) const { return base_ * factor(step); }

double LearningRate::factor(int64_t step) const {
  if (schedule_ == "constant") return 1.0;
  if (step < warmup_) return static_cast<double>(step) / static_cast<double>(warmup_);
  if (schedule_ == "constant_with_warmup") return 1.0;
  const auto span = static_cast<double>(std::max<int64_t>(1, total_ - warmup_));
  const double progress = static_cast<double>(step - warmup_) / span;
  if (schedule_ == "linear") return std::max(0.0, 1.0 - progress);
  const double pi = 3.14159265358979323846;
  if (schedule_ == "cosine") return std::max(0.0, 0.5 * (1.0 + std::cos(pi * progress)));
  if (progress >= 1.0 && schedule_ == "cosine_with_restarts") return 0.0;
  if (schedule_ == "cosine_with_restarts") {
    return std::max(0.0, 0.5 * (1.0 + std::cos(pi * std::fmod(cycles_ * progress, 1.0))));
  }
  const double last = 1e-7 / base_;  // diffusers' lr_end
  if (progress >= 1.0) return last;
  return (1.0 - last) * std::pow(1.0 - progress, power_) + last;
}

}  // namespace training
