// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>

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
  explicit ParameterBank(const std::vector<at::Tensor>& parameters);

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
  at::Tensor clip(double max_norm);

 private:
  at::Tensor values_, gradients_;
};

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/parameter_bank.h>
#endif
