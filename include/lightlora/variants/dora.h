// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <lightlora/options.h>

#include <cstdint>
#include <vector>

namespace lightlora {

/// The part of an adapter that trains the lengths of the weight's rows; with any variant that adds
/// to the weight.
/// Equation: delta = magnitude * (weight + added) / |weight + added| - weight, the row lengths |.|
///         taken as constants in the backward pass (the paper's section 4.3)
/// Paper:    Liu et al. 2024, "DoRA", arXiv:2402.09353
/// Shapes:   magnitude (out, 1), or (1, channels) with `dora_inputs`: one length for each input
///           channel, all kernel positions together; weight, added and delta (out, in)
/// Dtypes:   fp32, whatever the base is cast to
class DoRA {
 public:
  /// What the magnitude is called in files.
  static constexpr const char* kMagnitude = "magnitude";

  DoRA(const LoRAOptions& options, const LayerInfo& layer)
      : inputs_(options.dora_inputs()), out_(layer.out), in_(layer.in), channels_(layer.in) {
    for (const int64_t size : layer.kernel) channels_ /= size;
  }

  /// The sizes of `magnitude`.
  std::vector<int64_t> sizes() const {
    return inputs_ ? std::vector<int64_t>{1, channels_} : std::vector<int64_t>{out_, 1};
  }

  /// Starts at the lengths of the weight, so that a new adapter changes nothing.
  void start(const at::Tensor& weight) {
    const at::NoGradGuard no_grad;
    magnitude.copy_(lengths_of(weight.to(magnitude.device(), magnitude.scalar_type())));
  }

  /// The delta of an adapter that adds `added` to the weight; both in the magnitude's dtype.
  at::Tensor delta(const at::Tensor& weight, const at::Tensor& added) const {
    const at::Tensor moved = weight + added;
    const at::Tensor lengths = lengths_of(moved.detach()).clamp_min(1e-12);
    return over_matrix(magnitude / lengths) * moved - weight;
  }

  at::Tensor magnitude;  ///< trained

 private:
  // Copied first: a reduction's order, and so its last bit, depends on the strides.
  at::Tensor lengths_of(const at::Tensor& matrix) const {
    if (!inputs_) return matrix.contiguous().norm(2, 1, /*keepdim=*/true);
    const at::Tensor channels = matrix.reshape({out_, channels_, -1});
    return channels.transpose(0, 1).reshape({channels_, -1}).norm(2, 1).unsqueeze(0);
  }

  // One value for each row, or for each column of its channel.
  at::Tensor over_matrix(const at::Tensor& values) const {
    return inputs_ ? values.repeat_interleave(in_ / channels_, 1) : values;
  }

  bool inputs_;
  int64_t out_, in_, channels_;
};

}  // namespace lightlora
