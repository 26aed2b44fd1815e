// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "schedulers/parts.h"

namespace sd {

/// What the solvers of higher order share: noise levels with their log signal-to-noise
/// lambda = log(a / s),  a = 1 / sqrt(sigma^2 + 1),  s = sigma a, and the predicted clean sample.
class SolverScheduler : public Scheduler {
 public:
  void set_timesteps(int64_t n) override;
  torch::Tensor add_noise(const torch::Tensor& clean, const torch::Tensor& noise,
                          size_t index) const override;

 protected:
  struct Level {
    double signal, spread, lambda;
  };

  /// `round_karras`: Karras' timesteps are rounded, not cut off.
  SolverScheduler(const SchedulerConfig& config, bool karras, bool round_karras);

  /// Of the step `index`; behind the last one where it ends.
  Level level(size_t index) const;
  /// The clean sample in a model output, thresholded if the file says so.
  torch::Tensor clean_sample(const torch::Tensor& model_output, const torch::Tensor& sample,
                             size_t index) const;
  /// Leaves out training steps with a log signal-to-noise below the limit.
  void clip_lambda(const SchedulerConfig& config, double limit);

  bool karras_, ends_at_zero_;

 private:
  void set_karras(const std::vector<double>& table, int64_t n);
  void set_spaced(int64_t n);

  bool round_karras_;
  std::string spacing_;
  int64_t steps_offset_, last_timestep_;
  SampleClip clip_;
  std::vector<double> sigmas_;
};

}  // namespace sd
