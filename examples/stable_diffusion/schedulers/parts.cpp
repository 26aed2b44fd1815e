// SPDX-License-Identifier: Apache-2.0
#include "schedulers/parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace sd {

std::vector<double> spaced_timesteps(const std::string& spacing, int64_t train, int64_t n,
                                     int64_t steps_offset, bool round_linspace) {
  TORCH_CHECK_VALUE(n >= 1 && n <= train, "--num_inference_steps: expected 1 to ", train,
                    " (the model's training steps), got ", n);
  std::vector<double> steps;
  const auto count = static_cast<double>(n);
  const auto last = static_cast<double>(train - 1);
  for (int64_t i = n - 1; i >= 0; --i) {
    const auto at = static_cast<double>(i);
    if (spacing == "linspace") {
      // numpy sets the end itself instead of adding up to it.
      const double step = i == n - 1 && n > 1 ? last : n > 1 ? at * (last / (count - 1)) : 0.0;
      steps.push_back(round_linspace ? std::nearbyint(step) : static_cast<float>(step));
    } else if (spacing == "leading") {
      steps.push_back(at * static_cast<double>(train / n) + static_cast<double>(steps_offset));
    } else {
      const auto start = static_cast<double>(train);
      const double stride = (start - start / count) - start;  // as numpy.arange measures it
      steps.push_back(std::nearbyint(start + (count - 1 - at) * stride) - 1.0);
    }
  }
  TORCH_CHECK_VALUE(steps.front() <= last, "--num_inference_steps: expected fewer than ", n,
                    " steps, got a first timestep of ", steps.front(), " where the last is ", last,
                    "; hint: the scheduler's steps_offset is ", steps_offset);
  return steps;
}

Prediction predict(PredictionType type, const torch::Tensor& output, const torch::Tensor& sample,
                   double alpha_prod) {
  const double signal = std::sqrt(alpha_prod);
  const double spread = std::sqrt(1.0 - alpha_prod);
  switch (type) {
    case PredictionType::epsilon:
      return {(sample - spread * output) / signal, output};
    case PredictionType::sample:
      return {output, (sample - signal * output) / spread};
    case PredictionType::v_prediction:
      return {signal * sample - spread * output, signal * output + spread * sample};
  }
  TORCH_INTERNAL_ASSERT(false, "unknown prediction type");
}

SampleClip::SampleClip(const SchedulerConfig& config, std::optional<bool> clips)
    : thresholding_(config.flag("thresholding", false)),
      clips_(clips && config.flag("clip_sample", *clips)),
      range_(config.number("clip_sample_range", 1.0)),
      ratio_(config.number("dynamic_thresholding_ratio", 0.995)),
      largest_(config.number("sample_max_value", 1.0)) {}

torch::Tensor SampleClip::operator()(const torch::Tensor& sample) const {
  if (!thresholding_) return clips_ ? sample.clamp(-range_, range_) : sample;
  const auto values = sample.flatten(1);
  const auto limit = at::quantile(values.abs(), ratio_, /*dim=*/1, /*keepdim=*/true)
                         .clamp_min(1.0)
                         .clamp_max(largest_);
  return (at::minimum(at::maximum(values, -limit), limit) / limit).view(sample.sizes());
}

torch::Tensor noise_like(const torch::Tensor& like, const NoiseSource& noise) {
  return noise.draw(like.sizes(), like.scalar_type()).to(like.device());
}

std::vector<double> training_sigmas(const NoiseSchedule& schedule) {
  auto alphas = schedule.alphas_cumprod().clone();
  // Without any signal left sigma would be infinite; diffusers takes fp16's smallest number.
  if (alphas[-1].item<float>() == 0.0f) alphas[-1] = std::pow(2.0, -24.0);
  const auto sigmas = ((1.0 - alphas) / alphas).sqrt().to(at::kDouble);
  return {sigmas.data_ptr<double>(), sigmas.data_ptr<double>() + sigmas.numel()};
}

double interpolate(const std::vector<double>& values, double at) {
  const auto last = static_cast<double>(values.size() - 1);
  if (at >= last) return values.back();
  const auto low = static_cast<size_t>(at);
  return (values[low + 1] - values[low]) * (at - static_cast<double>(low)) + values[low];
}

double sigma_to_timestep(double sigma, const std::vector<double>& log_sigmas) {
  const double log_sigma = std::log(std::max(sigma, 1e-10));
  // The last training step whose sigma is not above this one.
  const auto above = std::upper_bound(log_sigmas.begin(), log_sigmas.end(), log_sigma);
  const auto below = std::max<std::ptrdiff_t>(above - log_sigmas.begin() - 1, 0);
  const auto low = std::min<size_t>(static_cast<size_t>(below), log_sigmas.size() - 2);
  const double share = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1]);
  const double w = std::clamp(share, 0.0, 1.0);
  return (1.0 - w) * static_cast<double>(low) + w * static_cast<double>(low + 1);
}

std::vector<double> karras_sigmas(double min, double max, int64_t n) {
  constexpr double rho = 7.0;
  const double low = std::pow(min, 1.0 / rho);
  const double high = std::pow(max, 1.0 / rho);
  std::vector<double> sigmas;
  for (int64_t i = 0; i < n; ++i) {
    const double ramp = n > 1 ? static_cast<double>(i) / static_cast<double>(n - 1) : 0.0;
    sigmas.push_back(std::pow(high + ramp * (low - high), rho));
  }
  return sigmas;
}

std::vector<double> to_float(std::vector<double> values) {
  for (auto& value : values) value = static_cast<float>(value);
  return values;
}

}  // namespace sd
