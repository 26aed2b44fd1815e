// SPDX-License-Identifier: Apache-2.0
#include "training/optimizer.h"

#include <ATen/ATen.h>

#include <functional>

namespace training {

using torch::Tensor;

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
    TORCH_CHECK(found != state.end(), "training: expected optimiser state '", prefix + name,
                "', got none; hint: the checkpoint was made with another --optimizer");
    TORCH_CHECK(found->second.sizes() == value.sizes(), "training: optimiser state '", prefix + name,
                "': expected shape ", value.sizes(), ", got ", found->second.sizes(),
                "; hint: the checkpoint was made with other adapters");
    value.copy_(found->second);
  }
}

Tensor Optimizer::track(const std::string& name, Tensor value) {
  state_.emplace_back(name, value);
  return value;
}

namespace {

using MakeOptimizer = std::function<std::unique_ptr<Optimizer>(const OptimizerOptions&,
                                                               const ParameterBank::Slice&)>;

template <typename Kind>
std::unique_ptr<Optimizer> over_values(const OptimizerOptions& options,
                                       const ParameterBank::Slice& slice) {
  return std::make_unique<Kind>(slice.values, options);
}

const std::vector<std::pair<std::string, MakeOptimizer>>& optimizer_kinds() {
  static const std::vector<std::pair<std::string, MakeOptimizer>> kinds{
      {"adamw", over_values<AdamW>},
      {"adafactor",
       [](const OptimizerOptions& options, const ParameterBank::Slice& slice) {
         return std::make_unique<Adafactor>(slice, options);
       }},
      {"lion", over_values<Lion>},
      {"prodigy", over_values<Prodigy>},
      {"sgd", over_values<SGD>}};
  return kinds;
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const ParameterBank::Slice& slice) {
  std::string known;
  for (const auto& [name, make] : optimizer_kinds()) {
    if (name == options.name) return make(options, slice);
    known += (known.empty() ? "" : ", ") + name;
  }
  TORCH_CHECK_VALUE(false, "--optimizer: expected one of ", known, ", got '", options.name, "'");
}

const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const auto& kind : optimizer_kinds()) result.push_back(kind.first);
    return result;
  }();
  return names;
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
