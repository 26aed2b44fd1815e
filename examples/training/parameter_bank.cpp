// SPDX-License-Identifier: Apache-2.0
#include "training/parameter_bank.h"

#include <ATen/ATen.h>

namespace training {

using torch::Tensor;

namespace {

int64_t count_checked(const std::vector<ParameterGroup>& groups) {
  int64_t count = 0;
  const Tensor* first = nullptr;
  for (const auto& group : groups) {
    for (const auto& parameter : group.parameters) {
      if (first == nullptr) first = &parameter;
      TORCH_CHECK(parameter.dtype() == first->dtype() && parameter.device() == first->device(),
                  "training: expected parameters of one dtype and device, got ", first->toString(),
                  " and ", parameter.toString());
      count += parameter.numel();
    }
  }
  TORCH_CHECK_VALUE(count > 0, "training: expected something to train, got nothing");
  return count;
}

}  // namespace

ParameterBank::ParameterBank(const std::vector<ParameterGroup>& groups) {
  const int64_t count = count_checked(groups);
  const torch::NoGradGuard no_grad;
  int64_t start = 0;
  for (const auto& group : groups) {
    if (group.parameters.empty()) continue;
    if (!values_.defined()) {
      values_ = at::empty({count}, group.parameters[0].options().requires_grad(false));
      gradients_ = at::zeros_like(values_);
    }
    const int64_t group_start = start;
    Slice slice{group.name, group.rate_factor, {}, {}, {}};
    for (Tensor parameter : group.parameters) {
      const auto view = [&](const Tensor& flat) {
        return flat.narrow(0, start, parameter.numel()).view(parameter.sizes());
      };
      view(values_).copy_(parameter);
      parameter.set_data(view(values_));
      parameter.mutable_grad() = view(gradients_);
      slice.shapes.push_back(parameter.sizes().vec());
      start += parameter.numel();
    }
    slice.values = values_.slice(0, group_start, start);
    slice.gradients = gradients_.slice(0, group_start, start);
    slices_.push_back(std::move(slice));
  }
}

Tensor ParameterBank::clip(double max_norm) {
  const Tensor norm = gradients_.norm();
  if (max_norm > 0) gradients_.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0));
  return norm;
}

}  // namespace training
