// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace lightlora {

/// Makes many leaf tensors views of one flat buffer, and their gradients views of another, so that
/// an optimiser, clipping, zeroing and an all-reduce touch one tensor each instead of hundreds.
/// The tensors stay the same objects; a backward pass adds into the flat gradient. They share the
/// version counter of `values()`: an in-place change of the flat buffer is seen by whoever watches a
/// parameter. (`at::_fused_adamw_` bumps no counter: call `changed()` after it.)
///
///     ParameterBank bank(lora->parameters());
///     loss.backward();
///     bank.clip(1.0);
///     at::_fused_adamw_({bank.values()}, {bank.gradients()}, ...);
///     bank.changed();
///     bank.zero_gradients();
class ParameterBank {
 public:
  /// Errors: c10::ValueError if there are none; c10::Error unless all have one dtype and device
  explicit ParameterBank(const std::vector<at::Tensor>& parameters) {
    TORCH_CHECK_VALUE(!parameters.empty(), "lightlora::ParameterBank: expected something to train, ",
                      "got nothing");
    int64_t count = 0;
    for (const auto& parameter : parameters) {
      TORCH_CHECK(parameter.dtype() == parameters[0].dtype() &&
                      parameter.device() == parameters[0].device(),
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

  /// All values, one after the other, in the order of the parameters.
  const at::Tensor& values() const { return values_; }
  /// Their gradients, likewise.
  const at::Tensor& gradients() const { return gradients_; }
  /// In place: the parameters' gradients stay views of the flat one.
  void zero_gradients() { gradients_.zero_(); }

  /// Tells whoever watches the parameters' versions that the values were written to.
  void changed() { values_.unsafeGetTensorImpl()->bump_version(); }

  /// Scales the gradients down so that their L2 norm is at most `max_norm`, and returns the norm
  /// they had as a tensor without dimensions: nothing waits for a GPU. No clipping if max_norm <= 0.
  at::Tensor clip(double max_norm) {
    const at::Tensor norm = gradients_.norm();
    if (max_norm > 0) gradients_.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0));
    return norm;
  }

 private:
  at::Tensor values_, gradients_;
};

}  // namespace lightlora
