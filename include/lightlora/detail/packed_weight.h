// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/detail/inference_cache.h>

#include <optional>

namespace lightlora {

/// A frozen weight once more, in the layout that the CPU's kernels (oneDNN) read. LibTorch's own
/// operators bring a weight into it in every call, which with few rows or pixels costs more than
/// the product. Packed once, for the forward and the backward pass each, it costs the weight's
/// memory again, or twice. Everything that changes the weight packs it anew (see InferenceCache).
class PackedWeight {
 public:
  /// Whether a product of `x` with this weight can be computed from a packed copy: both on a CPU,
  /// in one dtype (fp32, or bf16 where the processor has it), and the weight and its bias frozen.
  static bool usable(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias);

  /// The weight (out, in) of a linear layer, for `linear`.
  at::Tensor linear_weight(const at::Tensor& weight) const;
  /// Its transpose, for the gradient of the input.
  at::Tensor linear_weight_t(const at::Tensor& weight) const;
  /// x weight^T + bias.
  /// Shapes: x (N, in), result (N, out)
  static at::Tensor linear(const at::Tensor& x, const at::Tensor& packed,
                           const std::optional<at::Tensor>& bias = std::nullopt);

  /// The kernels (out, in, kh, kw) of a convolution, for `convolution`.
  at::Tensor kernels(const at::Tensor& weight) const;
  /// The kernels of the convolution that the gradient of the input is, where the stride is 1.
  at::Tensor kernels_t(const at::Tensor& weight) const;
  /// The convolution without groups.
  /// Shapes: x (B, in, H, W), result (B, out, H', W')
  static at::Tensor convolution(const at::Tensor& x, const at::Tensor& packed,
                                const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation);

 private:
  // The layout follows from these sizes, never from the first input, so that results do not either.
  static at::Tensor pack_matrix(const at::Tensor& weight);
  static at::Tensor pack_kernels(const at::Tensor& weight);

  mutable InferenceCache forward_, backward_;
};

/// x weight^T + bias from a packed weight, which must be `usable`.
/// Shapes: x (..., in), weight (out, in), result (..., out)
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const PackedWeight& packed);

/// A convolution without groups from packed kernels, which must be `usable`.
/// Shapes: x (B, in, H, W), weight (out, in, kh, kw), result (B, out, H', W')
at::Tensor packed_conv2d(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const PackedWeight& packed,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/packed_weight-inl.h>
#endif
