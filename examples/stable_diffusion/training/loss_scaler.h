// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/types.h>

namespace training {

/// Keeps fp16 gradients from vanishing: the loss is multiplied by a scale that halves when a
/// gradient overflows and doubles after 2000 steps without. Switched off it costs nothing.
class LossScaler {
 public:
  LossScaler(bool enabled, torch::Device device);

  bool enabled() const { return scale_.defined(); }
  /// loss * scale
  torch::Tensor scaled(const torch::Tensor& loss) const;
  /// Divides the gradients by the scale, adapts the scale, and says whether they are finite, as a
  /// tensor on their device, which nobody has waited for: if not, the step is to be left out.
  /// Without scaling the gradients are only looked at.
  torch::Tensor unscale(const torch::Tensor& gradients);
  /// Waits for the device.
  double scale() const;
  /// The same where it is; undefined if switched off.
  const torch::Tensor& scale_on_device() const { return scale_; }

  /// Scale and growth counter; empty if switched off.
  lightlora::TensorMap state(const std::string& prefix) const;
  void load_state(const lightlora::TensorMap& state, const std::string& prefix);

 private:
  torch::Tensor scale_, growth_;
};

}  // namespace training
