// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

#include "schedulers/parts.h"

namespace sd {
namespace {

/// Pseudo numerical methods, diffusers' PNDMScheduler: linear multistep (PLMS), after three
/// Runge-Kutta steps of four model calls each unless `skip_prk_steps` is set, as it is in Stable
/// Diffusion's files. With it the second timestep comes twice, so n steps call the model n + 1
/// times.
/// Equation: x_prev = sqrt(a_prev / a_t) x_t - (a_prev - a_t) e
///                    / (a_t sqrt(1 - a_prev) + sqrt(a_t (1 - a_t) a_prev)),
///           e a weighted sum of the last four predictions of the noise
/// Paper:    Liu et al. 2022, arXiv:2202.09778, eq. (9), (12) and (13)
/// What counts is the number of steps taken, not the index, as in diffusers: an image-to-image run
/// begins anew in the middle of the timesteps.
class PNDMScheduler : public Scheduler {
 public:
  // Zero terminal SNR is no option of this class: it divides by a_t.
  explicit PNDMScheduler(const SchedulerConfig& config)
      : Scheduler(config.with("rescale_betas_zero_snr", false)),
        spacing_(config.text("timestep_spacing", "leading", {"leading", "linspace", "trailing"})),
        steps_offset_(config.integer("steps_offset", 0)),
        skip_prk_steps_(config.flag("skip_prk_steps", false)),
        set_alpha_to_one_(config.flag("set_alpha_to_one", false)) {
    TORCH_CHECK_VALUE(schedule_.prediction_type() != PredictionType::sample, "'", config.source(),
                      "': expected prediction_type epsilon or v_prediction, got sample; hint: "
                      "--scheduler ddim knows it");
  }

  void set_timesteps(int64_t n) override {
    TORCH_CHECK_VALUE(skip_prk_steps_ || n >= 4, "--num_inference_steps: expected at least 4 for ",
                      "Runge-Kutta steps, got ", n, "; hint: the scheduler's skip_prk_steps");
    const int64_t train = schedule_.num_train_timesteps();
    const auto spaced = spaced_timesteps(spacing_, train, n, steps_offset_);
    stride_ = train / n;
    runge_kutta_calls_ = skip_prk_steps_ ? 0 : 12;
    timesteps_.clear();
    if (skip_prk_steps_) {
      timesteps_ = spaced;
      if (n > 1) timesteps_.insert(timesteps_.begin() + 1, spaced[1]);
    } else {
      const auto half = static_cast<double>(stride_ / 2);
      for (size_t i = 0; i < 3; ++i) {  // each from one of the first timesteps to the next
        const double middle = spaced[i + 1] + half;
        timesteps_.insert(timesteps_.end(), {spaced[i], middle, middle, spaced[i + 1]});
      }
      timesteps_.insert(timesteps_.end(), spaced.begin() + 3, spaced.end());
    }
    history_.clear();
    calls_ = 0;
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions&) override {
    const auto timestep = static_cast<int64_t>(timesteps_.at(index));
    const auto result = calls_ < runge_kutta_calls_ ? runge_kutta(model_output, timestep, sample)
                                                    : multistep(model_output, timestep, sample);
    ++calls_;
    return result;
  }

 private:
  torch::Tensor runge_kutta(const torch::Tensor& output, int64_t timestep,
                            const torch::Tensor& sample) {
    const int64_t previous = timestep - (calls_ % 2 == 0 ? stride_ / 2 : 0);
    const auto begin = static_cast<int64_t>(timesteps_.at(static_cast<size_t>(calls_ / 4 * 4)));
    switch (calls_ % 4) {
      case 0:
        sum_ = output / 6.0;
        start_ = sample;
        history_.push_back(output);
        break;
      case 3:
        return move(start_, begin, previous, sum_ + output / 6.0);
      default:
        sum_ = sum_ + output / 3.0;
    }
    return move(start_, begin, previous, output);
  }

  torch::Tensor multistep(const torch::Tensor& output, int64_t timestep,
                          const torch::Tensor& sample) {
    if (calls_ == 1) {  // the first step again, with the mean of the slopes at both its ends
      return move(start_, timestep + stride_, timestep, (output + history_.back()) / 2.0);
    }
    if (calls_ == 0) start_ = sample;
    if (history_.size() > 3) history_.erase(history_.begin());
    history_.push_back(output);
    return move(sample, timestep, timestep - stride_, extrapolated());
  }

  // Adams-Bashforth of the order that the history allows.
  torch::Tensor extrapolated() const {
    const auto e = [&](size_t back) { return history_[history_.size() - 1 - back]; };
    switch (history_.size()) {
      case 1:
        return e(0);
      case 2:
        return (3.0 * e(0) - e(1)) / 2.0;
      case 3:
        return (23.0 * e(0) - 16.0 * e(1) + 5.0 * e(2)) / 12.0;
      default:
        return (55.0 * e(0) - 59.0 * e(1) + 37.0 * e(2) - 9.0 * e(3)) / 24.0;
    }
  }

  double alpha_at(int64_t timestep) const {
    if (timestep < 0 && set_alpha_to_one_) return 1.0;
    return schedule_.alphas_cumprod()[std::max<int64_t>(timestep, 0)].item<double>();
  }

  torch::Tensor move(const torch::Tensor& sample, int64_t from, int64_t to,
                     const torch::Tensor& output) const {
    const double alpha = alpha_at(from);
    const double alpha_prev = alpha_at(to);
    const auto noise = predict(schedule_.prediction_type(), output, sample, alpha).noise;
    const double divisor =
        alpha * std::sqrt(1.0 - alpha_prev) + std::sqrt(alpha * (1.0 - alpha) * alpha_prev);
    return std::sqrt(alpha_prev / alpha) * sample - (alpha_prev - alpha) / divisor * noise;
  }

  std::string spacing_;
  int64_t steps_offset_;
  bool skip_prk_steps_, set_alpha_to_one_;
  int64_t stride_ = 1, runge_kutta_calls_ = 0, calls_ = 0;
  std::vector<torch::Tensor> history_;
  torch::Tensor start_, sum_;
};

}  // namespace

std::unique_ptr<Scheduler> make_pndm(const SchedulerConfig& config) {
  return std::make_unique<PNDMScheduler>(config);
}

}  // namespace sd
