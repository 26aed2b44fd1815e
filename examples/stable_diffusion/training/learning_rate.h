// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "support/cli/choices.h"

namespace training {

/// How the learning rate moves, as diffusers' `get_scheduler` has it, and the last one as
/// transformers' `get_wsd_schedule`: constant after the warm-up, then along a cosine to zero.
enum class Schedule {
  constant,
  constant_with_warmup,
  linear,
  cosine,
  cosine_with_restarts,
  polynomial,
  warmup_stable_decay,
};

/// Their names.
const cli::Choices<Schedule>& schedule_choices();

/// The learning rate of each step.
class LearningRate {
 public:
  /// `cycles`, `power` and `decay_steps` are those of cosine_with_restarts, polynomial and
  /// warmup_stable_decay.
  /// Errors: c10::ValueError if polynomial begins below the rate that it ends with
  LearningRate(Schedule schedule, double base, int64_t warmup_steps, int64_t total_steps,
               double cycles = 1, double power = 1, int64_t decay_steps = 0);

  /// The rate of a step, counted from 0.
  double at(int64_t step) const { return base_ * factor(step); }

 private:
  double factor(int64_t step) const;

  Schedule schedule_;
  double base_;
  int64_t warmup_, total_;
  double cycles_, power_;
  int64_t decay_;
};

}  // namespace training
