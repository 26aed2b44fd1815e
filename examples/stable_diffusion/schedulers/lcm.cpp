// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

#include "schedulers/parts.h"

namespace sd {
namespace {

/// Sampling of latent consistency models, diffusers' LCMScheduler: each step jumps to a clean
/// sample and adds fresh noise up to the next level. For models or LoRAs distilled for it, with 4
/// to 8 steps and a guidance scale of 1 to 2.
/// Equation: clean = c_skip x_t + c_out x_0,  x_next = sqrt(a_next) clean + sqrt(1 - a_next) noise,
///           c_skip = 1/4 / (s^2 + 1/4), c_out = s / sqrt(s^2 + 1/4), s = timestep_scaling t
/// Paper:    Luo et al. 2023, arXiv:2310.04378
class LCMScheduler : public Scheduler {
 public:
  explicit LCMScheduler(const SchedulerConfig& config)
      : Scheduler(config.with_defaults(
            {{"beta_schedule", "scaled_linear"}, {"beta_start", 0.00085}, {"beta_end", 0.012}})),
        clip_(config, /*clips=*/false),
        original_steps_(config.integer("original_inference_steps", 50)),
        scaling_(config.number("timestep_scaling", 10.0)) {
    const int64_t train = schedule_.num_train_timesteps();
    TORCH_CHECK_VALUE(original_steps_ >= 1 && original_steps_ <= train, "'", config.source(),
                      "': expected original_inference_steps from 1 to ", train, ", got ",
                      original_steps_);
  }

  void set_timesteps(int64_t n) override {
    TORCH_CHECK_VALUE(n >= 1 && n <= original_steps_, "--num_inference_steps: expected 1 to ",
                      original_steps_, " for lcm (its original_inference_steps), got ", n);
    const int64_t stride = schedule_.num_train_timesteps() / original_steps_;
    const double skipped = static_cast<double>(original_steps_) / static_cast<double>(n);
    timesteps_.clear();
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<int64_t>(static_cast<double>(i) * skipped);
      timesteps_.push_back(static_cast<double>((original_steps_ - at) * stride - 1));
    }
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions& options) override {
    const auto x0 =
        clip_(predict(schedule_.prediction_type(), model_output, sample, alpha_at(index)).sample);
    const double scaled = timesteps_[index] * scaling_;
    const double power = scaled * scaled + 0.25;
    const auto clean = scaled / std::sqrt(power) * x0 + 0.25 / power * sample;
    if (index + 1 == timesteps_.size()) return clean;
    const double alpha = alpha_at(index + 1);
    return std::sqrt(alpha) * clean +
           std::sqrt(1.0 - alpha) * noise_like(model_output, options.noise);
  }

 private:
  double alpha_at(size_t index) const {
    return schedule_.alphas_cumprod()[static_cast<int64_t>(timesteps_.at(index))].item<double>();
  }

  SampleClip clip_;
  int64_t original_steps_;
  double scaling_;
};

}  // namespace

std::unique_ptr<Scheduler> make_lcm(const SchedulerConfig& config) {
  return std::make_unique<LCMScheduler>(config);
}

}  // namespace sd
