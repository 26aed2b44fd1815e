// SPDX-License-Identifier: Apache-2.0
#include "training/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace training {

using torch::Tensor;

ParameterBank::ParameterBank(const std::vector<Tensor>& parameters) {
  TORCH_CHECK_VALUE(!parameters.empty(), "training: expected something to train, got nothing");
  int64_t count = 0;
  for (const auto& parameter : parameters) {
    TORCH_CHECK(parameter.dtype() == parameters[0].dtype() &&
                    parameter.device() == parameters[0].device(),
                "training: expected parameters of one dtype and device, got ",
                parameters[0].toString(), " and ", parameter.toString());
    count += parameter.numel();
  }
  const torch::NoGradGuard no_grad;
  values_ = at::empty({count}, parameters[0].options().requires_grad(false));
  gradients_ = at::zeros_like(values_);
  int64_t start = 0;
  for (Tensor parameter : parameters) {
    const auto view = [&](const Tensor& flat) {
      return flat.narrow(0, start, parameter.numel()).view(parameter.sizes());
    };
    view(values_).copy_(parameter);
    parameter.set_data(view(values_));
    parameter.mutable_grad() = view(gradients_);
    start += parameter.numel();
  }
}

Tensor ParameterBank::clip(double max_norm) {
  const Tensor norm = gradients_.norm();
  if (max_norm > 0) gradients_.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0));
  return norm;
}

AdamW::AdamW(const Tensor& values, AdamWOptions options)
    : options_(options),
      first_moment_(at::zeros_like(values)),
      second_moment_(at::zeros_like(values)),
      steps_(at::zeros({}, values.options().dtype(torch::kFloat))) {}

void AdamW::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  steps_.add_(1);
  at::_fused_adamw_({values}, {gradients}, {first_moment_}, {second_moment_}, {}, {steps_},
                    learning_rate, options_.beta1, options_.beta2, options_.weight_decay,
                    options_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
}

lightlora::TensorMap AdamW::state(const std::string& prefix) const {
  return {{prefix + "first_moment", first_moment_.cpu()},
          {prefix + "second_moment", second_moment_.cpu()},
          {prefix + "steps", steps_.cpu()}};
}

void AdamW::load_state(const lightlora::TensorMap& state, const std::string& prefix) {
  const torch::NoGradGuard no_grad;
  first_moment_.copy_(state.at(prefix + "first_moment"));
  second_moment_.copy_(state.at(prefix + "second_moment"));
  steps_.copy_(state.at(prefix + "steps"));
}

LossScaler::LossScaler(bool enabled, torch::Device device) {
  if (!enabled) return;
  scale_ = at::full({}, 65536.0, at::TensorOptions(device).dtype(torch::kFloat));
  growth_ = at::zeros({}, at::TensorOptions(device).dtype(torch::kInt));
}

Tensor LossScaler::scaled(const Tensor& loss) const {
  return enabled() ? loss * scale_.to(loss.dtype()) : loss;
}

bool LossScaler::unscale(const Tensor& gradients) {
  const torch::NoGradGuard no_grad;
  if (!enabled()) return gradients.isfinite().all().item<bool>();
  Tensor found_inf = at::zeros({}, scale_.options());
  at::_amp_foreach_non_finite_check_and_unscale_({gradients}, found_inf, scale_.reciprocal());
  at::_amp_update_scale_(scale_, growth_, found_inf, /*growth_factor=*/2.0, /*backoff=*/0.5,
                         /*growth_interval=*/2000);
  return found_inf.item<float>() == 0;
}

double LossScaler::scale() const { return enabled() ? scale_.item<double>() : 1.0; }

const std::vector<std::string>& LearningRate::schedules() {
  static const std::vector<std::string> names{"constant", "constant_with_warmup",
                                              "linear",   "cosine",
                                              "cosine_with_restarts", "polynomial"};
  return names;
}

LearningRate::LearningRate(std::string schedule, double base, int64_t warmup_steps,
                           int64_t total_steps, double cycles, double power)
    : schedule_(std::move(schedule)),
      base_(base),
      warmup_(warmup_steps),
      total_(total_steps),
      cycles_(cycles),
      power_(power) {
  std::string known;
  for (const auto& name : schedules()) known += (known.empty() ? "" : ", ") + name;
  TORCH_CHECK_VALUE(
      std::find(schedules().begin(), schedules().end(), schedule_) != schedules().end(),
      "--lr_scheduler: expected one of ", known, ", got '", schedule_, "'");
}

double LearningRate::at(int64_t step) const { return base_ * factor(step); }

double LearningRate::factor(int64_t step) const {
  if (schedule_ == "constant") return 1.0;
  if (step < warmup_) return static_cast<double>(step) / static_cast<double>(warmup_);
  if (schedule_ == "constant_with_warmup") return 1.0;
  const auto span = static_cast<double>(std::max<int64_t>(1, total_ - warmup_));
  const double progress = static_cast<double>(step - warmup_) / span;
  if (schedule_ == "linear") return std::max(0.0, 1.0 - progress);
  const double pi = 3.14159265358979323846;
  if (schedule_ == "cosine") return std::max(0.0, 0.5 * (1.0 + std::cos(pi * progress)));
  if (progress >= 1.0 && schedule_ == "cosine_with_restarts") return 0.0;
  if (schedule_ == "cosine_with_restarts") {
    return std::max(0.0, 0.5 * (1.0 + std::cos(pi * std::fmod(cycles_ * progress, 1.0))));
  }
  const double last = 1e-7 / base_;  // diffusers' lr_end
  if (progress >= 1.0) return last;
  return (1.0 - last) * std::pow(1.0 - progress, power_) + last;
}

}  // namespace training
