// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace training {

/// Learning rate schedules of diffusers' `get_scheduler`, as a factor of the base rate.
/// Errors of the constructor: c10::ValueError that lists the known names
class LearningRate {
 public:
  /// Names: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial.
  /// `cycles` and `power` are those of the last two.
  LearningRate(std::string schedule, double base, int64_t warmup_steps, int64_t total_steps,
               double cycles = 1, double power = 1);

  /// The rate of a step, counted from 0.
  double at(int64_t step) const;

  static const std::vector<std::string>& schedules();

 private:
  double factor(int64_t step) const;

  std::string schedule_;
  double base_;
  int64_t warmup_, total_;
  double cycles_, power_;
};

}  // namespace training
