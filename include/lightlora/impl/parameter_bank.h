// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/parameter_bank.h>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace lightlora {

LIGHTLORA_INLINE ParameterBank::ParameterBank(const std::vector<at::Tensor>& parameters) {
  TORCH_CHECK_VALUE(!parameters.empty(), "lightlora::ParameterBank: expected something to train, ",
                    "got nothing");
  int64_t count = 0;
  for (const auto& parameter : parameters) {
    TORCH_CHECK(
        parameter.dtype() == parameters[0].dtype() && parameter.device() == parameters[0].device(),
        "lightlora::ParameterBank: expected parameters of one dtype and device, got ",
        parameters[0].toString(), " and ", parameter.toString());
    count += parameter.numel();
  }
  const at::NoGradGuard no_grad;
  values_ = at::empty({count}, parameters[0].options().requires_grad(false));
  gradients_ = at::zeros_like(values_);
  int64_t start = 0;
  for (at::Tensor parameter : parameters) {
    const auto view = [&](const at::Tensor& flat) {
      return flat.narrow(0, start, parameter.numel()).view(parameter.sizes());
    };
    view(values_).copy_(parameter);
    parameter.set_data(view(values_));
    parameter.unsafeGetTensorImpl()->set_version_counter(
        values_.unsafeGetTensorImpl()->version_counter());
    parameter.mutable_grad() = view(gradients_);
    start += parameter.numel();
  }
}

LIGHTLORA_INLINE at::Tensor ParameterBank::clip(double max_norm) {
  const at::Tensor norm = gradients_.norm();
  if (max_norm > 0) gradients_.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0));
  return norm;
}

}  // namespace lightlora
