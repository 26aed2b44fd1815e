// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKey.h>
#include <c10/util/intrusive_ptr.h>
#include <lightlora/config.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace lightlora {

// How a frozen weight is kept in eight bits while its layer goes on as ever. The layer's parameter
// gets a storage without memory, which holds a QuantisedWeight, and a dispatch key of LibTorch's
// that lies above autograd and autocast. Operators that get such a parameter come here: products
// and convolutions are computed in eight bits, views pass, and every other operator gets the full
// weight, made for that call (quantised_calls-inl.h). Nothing need be activated, and code that only
// reads weights, such as DoRA's norms, needs to know nothing.

namespace detail {

/// The dispatch key of a parameter that is kept in eight bits.
constexpr auto kQuantisedKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

/// Has LibTorch call the kernels, once per process.
void register_quantised_kernels();

}  // namespace detail

/// A frozen weight (out, in) or the kernels (out, in, kh, kw) of a convolution of stride 1 in eight
/// bits: w = s_o q, with one scale s_o = max |w_o| / 127 for each output. A call brings its inputs
/// into eight bits too, with one scale for each row (of a matrix, or of an image), adds up in 32
/// bits and scales: against the full product the error is about one percent of its size.
/// Lies on a CPU with AVX-512 VNNI in that kernel's layout, elsewhere as it is for `at::_int_mm`.
class QuantisedWeight : public torch::CustomClassHolder {
 public:
  /// Whether a weight can be kept so: fp32, bf16 or fp16, two or four dimensions, sums that 32 bits
  /// hold.
  static bool fits(const at::Tensor& weight);
  /// `native` false leaves the kernels of this library out, for comparison.
  explicit QuantisedWeight(const at::Tensor& weight, bool native = true);

  /// The weight once more, rounded to eight bits, in its own dtype.
  at::Tensor dense() const;
  /// A tensor that stands for it, without memory of its own.
  static at::Tensor stand_in(c10::intrusive_ptr<QuantisedWeight> weight, const at::Tensor& like);
  /// What a tensor stands for, or null.
  static const QuantisedWeight* of(const at::Tensor& weight);
  /// The same, to be kept.
  static c10::intrusive_ptr<QuantisedWeight> held_by(const at::Tensor& weight);

  /// x W^T + bias, or x W. Shapes: x (N, in), result (N, out); transposed the other way about
  at::Tensor product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                     bool transposed) const;
  /// The convolution of stride 1, or the gradient of its input.
  /// Shapes: x (B, in, H, W), result (B, out, H', W'); transposed the other way about
  at::Tensor convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                         at::IntArrayRef padding, bool transposed) const;

  /// Of the weight.
  const std::vector<int64_t>& sizes() const { return sizes_; }
  /// Bytes that it takes.
  int64_t nbytes() const;

 private:
  bool computes(const at::Tensor& x) const;
  at::Tensor kernel_product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                            bool transposed) const;
  at::Tensor composed_product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                              bool transposed) const;
  at::Tensor kernel_convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                                at::IntArrayRef padding, bool transposed) const;
  at::Tensor dense_convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                               at::IntArrayRef padding, bool transposed) const;

  std::vector<int64_t> sizes_;
  at::ScalarType dtype_;
  bool tiled_;          // in the kernels' layout
  at::Tensor values_;   // int8
  at::Tensor scales_;   // fp32, of each output, padded as the values are
  at::Tensor offsets_;  // int32: 128 times the sums that the kernels take off, if tiled
};

/// Whether a tensor stands for a weight that is kept in eight bits.
inline bool is_quantized(const at::Tensor& weight) {
  return weight.defined() && weight.key_set().has(detail::kQuantisedKey);
}

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/quantised_weight-inl.h>

#include <lightlora/detail/quantised_calls-inl.h>
#endif
