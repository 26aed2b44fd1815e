// SPDX-License-Identifier: Apache-2.0
#include "training/learning_rate.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace training {

namespace {

constexpr double kPolynomialEnd = 1e-7;  // diffusers' lr_end

}  // namespace

LearningRate::LearningRate(Schedule schedule, double base, int64_t warmup_steps,
                           int64_t total_steps, double cycles, double power, int64_t decay_steps)
    : schedule_(schedule),
      base_(base),
      warmup_(warmup_steps),
      total_(total_steps),
      cycles_(cycles),
      power_(power),
      decay_(decay_steps) {
  TORCH_CHECK_VALUE(schedule != Schedule::polynomial || base > kPolynomialEnd,
                    "--learning_rate: expected more than ", kPolynomialEnd,
                    ", with which --lr_scheduler polynomial ends, got ", base);
}

const cli::Choices<Schedule>& schedule_choices() {
  static const cli::Choices<Schedule> choices{
      {"constant", Schedule::constant},
      {"constant_with_warmup", Schedule::constant_with_warmup},
      {"linear", Schedule::linear},
      {"cosine", Schedule::cosine},
      {"cosine_with_restarts", Schedule::cosine_with_restarts},
      {"polynomial", Schedule::polynomial},
      {"warmup_stable_decay", Schedule::warmup_stable_decay}};
  return choices;
}

double LearningRate::factor(int64_t step) const {
  if (schedule_ == Schedule::constant) return 1.0;
  if (step < warmup_) return static_cast<double>(step) / static_cast<double>(warmup_);
  if (schedule_ == Schedule::constant_with_warmup) return 1.0;
  const double pi = 3.14159265358979323846;
  if (schedule_ == Schedule::warmup_stable_decay) {
    if (step < total_ - decay_) return 1.0;
    if (step >= total_) return 0.0;
    const double fallen = static_cast<double>(step - (total_ - decay_));
    return 0.5 * (1.0 + std::cos(pi * fallen / static_cast<double>(decay_)));
  }
  const auto span = static_cast<double>(std::max<int64_t>(1, total_ - warmup_));
  const double progress = static_cast<double>(step - warmup_) / span;
  if (schedule_ == Schedule::linear) return std::max(0.0, 1.0 - progress);
  if (schedule_ == Schedule::cosine) return std::max(0.0, 0.5 * (1.0 + std::cos(pi * progress)));
  if (progress >= 1.0 && schedule_ == Schedule::cosine_with_restarts) return 0.0;
  if (schedule_ == Schedule::cosine_with_restarts) {
    return std::max(0.0, 0.5 * (1.0 + std::cos(pi * std::fmod(cycles_ * progress, 1.0))));
  }
  const double last = kPolynomialEnd / base_;
  if (progress >= 1.0) return last;
  return (1.0 - last) * std::pow(1.0 - progress, power_) + last;
}

}  // namespace training
