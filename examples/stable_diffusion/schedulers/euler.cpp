// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "schedulers/parts.h"

namespace sd {
namespace {

/// What Euler's method and its ancestral form share: noise levels sigma at (possibly fractional)
/// timesteps, and a sample that is clean + sigma * noise.
class SigmaScheduler : public Scheduler {
 public:
  explicit SigmaScheduler(const SchedulerConfig& config)
      : Scheduler(config),
        spacing_(config.text("timestep_spacing", "linspace", {"leading", "linspace", "trailing"})),
        steps_offset_(config.integer("steps_offset", 0)) {}

  void set_timesteps(int64_t n) override {
    timesteps_ = spaced_timesteps(spacing_, schedule_.num_train_timesteps(), n, steps_offset_,
                                  /*round_linspace=*/false);
    const auto table = training_sigmas(schedule_);
    sigmas_.clear();
    for (const double timestep : timesteps_) sigmas_.push_back(interpolate(table, timestep));
  }

  double init_noise_sigma() const override {
    const double largest = *std::max_element(sigmas_.begin(), sigmas_.end());
    return spacing_ == "leading" ? std::sqrt(largest * largest + 1.0) : largest;
  }

  torch::Tensor add_noise(const torch::Tensor& clean, const torch::Tensor& noise,
                          size_t index) const override {
    return clean + sigmas_.at(index) * noise;
  }

  torch::Tensor scale_model_input(const torch::Tensor& sample, size_t index) const override {
    const double sigma = sigmas_.at(index);
    return sample / std::sqrt(sigma * sigma + 1.0);
  }

 protected:
  torch::Tensor clean_sample(const torch::Tensor& output, const torch::Tensor& sample,
                             double sigma) const {
    const double power = sigma * sigma + 1.0;
    switch (schedule_.prediction_type()) {
      case PredictionType::epsilon:
        return sample - sigma * output;
      case PredictionType::sample:
        return output;
      case PredictionType::v_prediction:
        return sample / power - (sigma / std::sqrt(power)) * output;
    }
    TORCH_INTERNAL_ASSERT(false, "unknown prediction type");
  }

  std::string spacing_;
  int64_t steps_offset_;
  std::vector<double> sigmas_;  // one more than timesteps: where the last step ends
};

/// Euler's method on the noise level, diffusers' EulerDiscreteScheduler without churn.
/// Equation: x_next = x + (x - x_0) / sigma * (sigma_next - sigma)
/// Paper:    Karras et al. 2022, arXiv:2206.00364, algorithm 2
class EulerScheduler : public SigmaScheduler {
 public:
  explicit EulerScheduler(const SchedulerConfig& config)
      : SigmaScheduler(config),
        karras_(config.flag("use_karras_sigmas", false)),
        sigma_min_(config.number("sigma_min", 0.0)),
        sigma_max_(config.number("sigma_max", 0.0)),
        final_(config.text("final_sigmas_type", "zero", {"zero", "sigma_min"})) {
    config.text("interpolation_type", "linear", {"linear"});
    const bool continuous =
        config.text("timestep_type", "discrete", {"discrete", "continuous"}) == "continuous";
    TORCH_CHECK_VALUE(!continuous || schedule_.prediction_type() != PredictionType::v_prediction,
                      "'", config.source(),
                      "': expected timestep_type discrete with v_prediction, got continuous");
    for (const auto* key : {"use_exponential_sigmas", "use_beta_sigmas"}) {
      TORCH_CHECK_VALUE(!config.flag(key, false), "'", config.source(), "': expected ", key,
                        " to be false, got true; hint: use_karras_sigmas is supported");
    }
  }

  void set_timesteps(int64_t n) override {
    SigmaScheduler::set_timesteps(n);
    const auto table = training_sigmas(schedule_);
    if (karras_) {
      std::vector<double> logs;
      for (const double sigma : table) logs.push_back(std::log(sigma));
      logs = to_float(logs);
      sigmas_ = karras_sigmas(sigma_min_ > 0.0 ? sigma_min_ : sigmas_.back(),
                              sigma_max_ > 0.0 ? sigma_max_ : sigmas_.front(), n);
      for (size_t i = 0; i < sigmas_.size(); ++i) {
        timesteps_[i] = static_cast<float>(sigma_to_timestep(sigmas_[i], logs));
      }
    }
    sigmas_.push_back(final_ == "zero" ? 0.0 : table.front());
    sigmas_ = to_float(sigmas_);
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions&) override {
    const double sigma = sigmas_.at(index);
    const auto slope = (sample - clean_sample(model_output, sample, sigma)) / sigma;
    return sample + slope * (sigmas_.at(index + 1) - sigma);
  }

 private:
  bool karras_;
  double sigma_min_, sigma_max_;
  std::string final_;
};

/// Euler steps that go lower than the next noise level and add fresh noise up to it, diffusers'
/// EulerAncestralDiscreteScheduler.
/// Equation: x_next = x + (x - x_0) / sigma * (down - sigma) + up * noise,
///           up^2 = next^2 (sigma^2 - next^2) / sigma^2,  down^2 = next^2 - up^2
class EulerAncestralScheduler : public SigmaScheduler {
 public:
  explicit EulerAncestralScheduler(const SchedulerConfig& config) : SigmaScheduler(config) {
    TORCH_CHECK_VALUE(schedule_.prediction_type() != PredictionType::sample, "'", config.source(),
                      "': expected prediction_type epsilon or v_prediction, got sample; hint: "
                      "--scheduler euler knows it");
  }

  void set_timesteps(int64_t n) override {
    SigmaScheduler::set_timesteps(n);
    sigmas_.push_back(0.0);
    sigmas_ = to_float(sigmas_);
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions& options) override {
    const double sigma = sigmas_.at(index);
    const double next = sigmas_.at(index + 1);
    const double up = std::sqrt(next * next * (sigma * sigma - next * next) / (sigma * sigma));
    const double down = std::sqrt(next * next - up * up);
    const auto slope = (sample - clean_sample(model_output, sample, sigma)) / sigma;
    return sample + slope * (down - sigma) + up * noise_like(model_output, options.noise);
  }
};

}  // namespace

std::unique_ptr<Scheduler> make_euler(const SchedulerConfig& config) {
  return std::make_unique<EulerScheduler>(config);
}

std::unique_ptr<Scheduler> make_euler_ancestral(const SchedulerConfig& config) {
  return std::make_unique<EulerAncestralScheduler>(config);
}

}  // namespace sd
