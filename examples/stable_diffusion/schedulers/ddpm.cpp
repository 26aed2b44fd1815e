// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "schedulers/parts.h"

namespace sd {
namespace {

/// Ancestral sampling of denoising diffusion models, diffusers' DDPMScheduler.
/// Equation: x_prev = sqrt(a_prev) b / (1 - a_t) x_0 + sqrt(1 - b) (1 - a_prev) / (1 - a_t) x_t
///                    + sqrt(variance) noise,  b = 1 - a_t / a_prev; no noise at timestep 0
/// Paper:    Ho et al. 2020, arXiv:2006.11239, eq. (7)
class DDPMScheduler : public Scheduler {
 public:
  explicit DDPMScheduler(const SchedulerConfig& config)
      : Scheduler(config),
        clip_(config, /*clips=*/true),
        spacing_(config.text("timestep_spacing", "leading", {"leading", "linspace", "trailing"})),
        variance_type_(config.text("variance_type", "fixed_small",
                                   {"fixed_small", "fixed_small_log", "fixed_large"})),
        steps_offset_(config.integer("steps_offset", 0)) {}

  void set_timesteps(int64_t n) override {
    timesteps_ = spaced_timesteps(spacing_, schedule_.num_train_timesteps(), n, steps_offset_);
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions& options) override {
    const double alpha = alpha_at(index);
    const double alpha_prev = alpha_at(index + 1);
    const double beta = 1.0 - alpha / alpha_prev;
    const auto clean =
        clip_(predict(schedule_.prediction_type(), model_output, sample, alpha).sample);
    const double clean_share = std::sqrt(alpha_prev) * beta / (1.0 - alpha);
    const double sample_share = std::sqrt(1.0 - beta) * (1.0 - alpha_prev) / (1.0 - alpha);
    const auto mean = clean_share * clean + sample_share * sample;
    if (timesteps_[index] <= 0.0) return mean;
    const double small = std::max((1.0 - alpha_prev) / (1.0 - alpha) * beta, 1e-20);
    const double variance = variance_type_ == "fixed_large" ? beta : small;
    return mean + std::sqrt(variance) * noise_like(model_output, options.noise);
  }

 private:
  // Behind the last step there is no noise.
  double alpha_at(size_t index) const {
    if (index >= timesteps_.size()) return 1.0;
    return schedule_.alphas_cumprod()[static_cast<int64_t>(timesteps_[index])].item<double>();
  }

  SampleClip clip_;
  std::string spacing_, variance_type_;
  int64_t steps_offset_;
};

}  // namespace

std::unique_ptr<Scheduler> make_ddpm(const SchedulerConfig& config) {
  return std::make_unique<DDPMScheduler>(config);
}

}  // namespace sd
