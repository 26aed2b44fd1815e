// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

#include "schedulers/parts.h"

namespace sd {
namespace {

/// Denoising diffusion implicit models, diffusers' DDIMScheduler.
/// Equation: x_prev = sqrt(a_prev) x_0 + sqrt(1 - a_prev - s^2) noise_hat + s noise,
///           s = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev)
/// Paper:    Song et al. 2021, arXiv:2010.02502, eq. (12) and (16)
class DDIMScheduler : public Scheduler {
 public:
  explicit DDIMScheduler(const SchedulerConfig& config)
      : Scheduler(config),
        clip_(config, /*clips=*/true),
        spacing_(config.text("timestep_spacing", "leading", {"leading", "linspace", "trailing"})),
        steps_offset_(config.integer("steps_offset", 0)),
        set_alpha_to_one_(config.flag("set_alpha_to_one", true)) {}

  void set_timesteps(int64_t n) override {
    const int64_t train = schedule_.num_train_timesteps();
    timesteps_ = spaced_timesteps(spacing_, train, n, steps_offset_);
    stride_ = train / n;
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions& options) override {
    const auto timestep = static_cast<int64_t>(timesteps_.at(index));
    const double alpha = alpha_at(timestep);
    const double alpha_prev = alpha_at(timestep - stride_);
    auto prediction = predict(schedule_.prediction_type(), model_output, sample, alpha);
    const double variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
    const double spread = options.eta > 0.0 ? options.eta * std::sqrt(variance) : 0.0;
    const double direction = std::sqrt(1.0 - alpha_prev - spread * spread);
    const auto previous = std::sqrt(alpha_prev) * clip_(prediction.sample);
    const auto result = previous + direction * prediction.noise;
    if (options.eta <= 0.0) return result;
    return result + spread * noise_like(model_output, options.noise);
  }

 private:
  // The step below the first one: no noise at all, or as much as the first step has.
  double alpha_at(int64_t timestep) const {
    if (timestep < 0 && set_alpha_to_one_) return 1.0;
    return schedule_.alphas_cumprod()[std::max<int64_t>(timestep, 0)].item<double>();
  }

  SampleClip clip_;
  std::string spacing_;
  int64_t steps_offset_;
  bool set_alpha_to_one_;
  int64_t stride_ = 1;
};

}  // namespace

std::unique_ptr<Scheduler> make_ddim(const SchedulerConfig& config) {
  return std::make_unique<DDIMScheduler>(config);
}

}  // namespace sd
