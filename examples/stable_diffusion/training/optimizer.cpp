// SPDX-License-Identifier: Apache-2.0
#include "training/optimizer.h"

#include <ATen/ATen.h>

namespace training {

using torch::Tensor;

namespace {

std::vector<torch::Tensor> parameters_of(const std::vector<ParameterGroup>& groups) {
  std::vector<torch::Tensor> all;
  for (const auto& group : groups) {
    all.insert(all.end(), group.parameters.begin(), group.parameters.end());
  }
  return all;
}

}  // namespace

ParameterBank::ParameterBank(const std::vector<ParameterGroup>& groups)
    : lightlora::ParameterBank(parameters_of(groups)) {
  int64_t start = 0;
  for (const auto& group : groups) {
    if (group.parameters.empty()) continue;
    Slice slice{group.name, group.rate_factor, {}, {}, {}};
    int64_t count = 0;
    for (const auto& parameter : group.parameters) {
      slice.shapes.push_back(parameter.sizes().vec());
      count += parameter.numel();
    }
    slice.values = values().narrow(0, start, count);
    slice.gradients = gradients().narrow(0, start, count);
    slices_.push_back(std::move(slice));
    start += count;
  }
}

lightlora::TensorMap Optimizer::state(const std::string& prefix) const {
  lightlora::TensorMap result;
  for (const auto& [name, value] : state_) {
    result[prefix + name] = value.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true);
  }
  return result;
}

void Optimizer::load_state(const lightlora::TensorMap& state, const std::string& prefix) {
  const torch::NoGradGuard no_grad;
  for (auto& [name, value] : state_) {
    const auto found = state.find(prefix + name);
    TORCH_CHECK(found != state.end(), "expected optimizer state '", prefix + name,
                "', got none; hint: the checkpoint was made with another --optimizer");
    TORCH_CHECK(found->second.sizes() == value.sizes(), "optimizer state '", prefix + name,
                "': expected shape ", value.sizes(), ", got ", found->second.sizes(),
                "; hint: the checkpoint was made with other adapters");
    value.copy_(found->second);
  }
}

Tensor Optimizer::track(const std::string& name, Tensor value) {
  state_.emplace_back(name, value);
  return value;
}

const cli::Choices<OptimizerKind>& optimizer_choices() {
  static const cli::Choices<OptimizerKind> choices{{"adamw", OptimizerKind::adamw},
                                                   {"adafactor", OptimizerKind::adafactor},
                                                   {"lion", OptimizerKind::lion},
                                                   {"prodigy", OptimizerKind::prodigy},
                                                   {"sgd", OptimizerKind::sgd}};
  return choices;
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const ParameterBank::Slice& slice) {
  switch (options.kind) {
    case OptimizerKind::adafactor:
      return std::make_unique<Adafactor>(slice, options);
    case OptimizerKind::lion:
      return std::make_unique<Lion>(slice.values, options);
    case OptimizerKind::prodigy:
      return std::make_unique<Prodigy>(slice.values, options);
    case OptimizerKind::sgd:
      return std::make_unique<SGD>(slice.values, options);
    case OptimizerKind::adamw:
      break;
  }
  return std::make_unique<AdamW>(slice.values, options);
}

AdamW::AdamW(const Tensor& values, const OptimizerOptions& options)
    : options_(options),
      first_moment_(track("first_moment", at::zeros_like(values))),
      second_moment_(track("second_moment", at::zeros_like(values))),
      steps_(track("steps", at::zeros({}, values.options().dtype(torch::kFloat)))) {}

void AdamW::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  steps_.add_(1);
  at::_fused_adamw_({values}, {gradients}, {first_moment_}, {second_moment_}, {}, {steps_},
                    learning_rate, options_.beta1, options_.beta2.value_or(0.999),
                    options_.decay.value_or(1e-2), options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
  values.unsafeGetTensorImpl()->bump_version();  // which the fused step leaves out
}

Lion::Lion(const Tensor& values, const OptimizerOptions& options)
    : beta1_(options.beta1),
      beta2_(options.beta2.value_or(0.99)),
      decay_(options.decay.value_or(1e-2)),
      moment_(track("moment", at::zeros_like(values))) {}

void Lion::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  values.mul_(1 - learning_rate * decay_);
  values.add_(moment_.mul(beta1_).add_(gradients, 1 - beta1_).sign_(), -learning_rate);
  moment_.mul_(beta2_).add_(gradients, 1 - beta2_);
}

SGD::SGD(const Tensor& values, const OptimizerOptions& options)
    : momentum_(options.momentum),
      decay_(options.decay.value_or(0)),
      velocity_(track("velocity", at::zeros_like(values))) {}

void SGD::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  velocity_.mul_(momentum_).add_(gradients).add_(values, decay_);
  values.add_(velocity_, -learning_rate);
}

}  // namespace training
