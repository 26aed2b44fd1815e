// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKey.h>
#include <c10/util/intrusive_ptr.h>
#include <lightlora/config.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace lightlora {

// How a frozen weight is kept in eight or four bits while its layer goes on as ever. The layer's
// parameter gets a storage without memory, which holds a QuantisedWeight, and a dispatch key of
// LibTorch's that lies above autograd and autocast. Operators that get such a parameter come here:
// products and convolutions are the weight's own, views pass, and every other operator gets the full
// weight, made for that call (quantised_calls-inl.h). Nothing need be activated, and code that only
// reads weights, such as DoRA's norms, needs to know nothing.

/// How `quantize` keeps a weight.
enum class WeightFormat {
  int8,  ///< eight bits, which products are computed in
  nf4    ///< four bits, QLoRA's NormalFloat, for a full weight in each call
};

namespace detail {

/// The dispatch key of a parameter that stands for a QuantisedWeight.
constexpr auto kQuantisedKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

/// Has LibTorch call the kernels, once per process.
void register_quantised_kernels();

}  // namespace detail

/// How a convolution goes over its input; the numbers of `at::convolution`, one for each dimension.
struct ConvolutionSteps : torch::CustomClassHolder {
  std::vector<int64_t> stride, padding, dilation, output_padding;
  bool transposed = false;
  int64_t groups = 1;

  /// Those of the gradient of the input, which has `sizes` and kernels with `kernel`.
  c10::intrusive_ptr<ConvolutionSteps> reversed(at::IntArrayRef sizes,
                                                at::IntArrayRef kernel) const;
  /// Whether the input is gone over pixel by pixel, in one group.
  bool plain() const;
};

/// A frozen weight (out, in) or the kernels of a convolution in fewer bits than its dtype has.
/// Products and convolutions are those of the full weight, made for the call, unless a kind of
/// weight has its own.
class QuantisedWeight : public torch::CustomClassHolder {
 public:
  /// A tensor that stands for it, with its sizes and dtype, without memory of its own.
  static at::Tensor stand_in(c10::intrusive_ptr<QuantisedWeight> weight);
  /// What a tensor stands for, or null.
  static const QuantisedWeight* of(const at::Tensor& weight);
  /// The same, to be kept.
  static c10::intrusive_ptr<QuantisedWeight> held_by(const at::Tensor& weight);

  /// The weight once more, rounded as it is kept, in its own dtype.
  virtual at::Tensor dense() const = 0;
  /// x W^T + bias, or x W. Shapes: x (N, in), result (N, out); transposed the other way about
  virtual at::Tensor product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                             bool transposed) const;
  /// The convolution, or the gradient of its input.
  /// Shapes: x (B, in, ...), result (B, out, ...); transposed the other way about
  virtual at::Tensor convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                                 const ConvolutionSteps& steps) const;
  /// How it is kept, for messages: "eight bits".
  virtual const char* kept_in() const = 0;
  /// Bytes that it takes.
  virtual int64_t nbytes() const = 0;
  /// Where it lies.
  virtual at::Device device() const = 0;

  /// Of the weight.
  const std::vector<int64_t>& sizes() const { return sizes_; }
  /// Of the full weight.
  at::ScalarType dtype() const { return dtype_; }

 protected:
  /// A weight of these sizes, in that dtype when it is full.
  QuantisedWeight(std::vector<int64_t> sizes, at::ScalarType dtype)
      : sizes_(std::move(sizes)), dtype_(dtype) {}

  std::vector<int64_t> sizes_;  ///< of the weight
  at::ScalarType dtype_;        ///< of the full weight
};

/// A weight (out, in) or the kernels (out, in, kh, kw) of a convolution of stride 1 in eight
/// bits: w = s_o q, with one scale s_o = max |w_o| / 127 for each output. A call brings its inputs
/// into eight bits too, with one scale for each row (of a matrix, or of an image), adds up in 32
/// bits and scales: against the full product the error is about one percent of its size.
/// Lies on a CPU with AVX-512 VNNI in that kernel's layout, elsewhere as it is for `at::_int_mm`.
class Int8Weight final : public QuantisedWeight {
 public:
  /// Whether a weight can be kept so: fp32, bf16 or fp16, two or four dimensions, sums that 32 bits
  /// hold.
  static bool fits(const at::Tensor& weight);
  /// `native` false leaves the kernels of this library out, for comparison.
  explicit Int8Weight(const at::Tensor& weight, bool native = true);
  /// The weight q s_o of a file. Shapes: q (out, ...) int8, scales (out) fp32
  Int8Weight(const at::Tensor& q, const at::Tensor& scales, at::ScalarType dtype,
             bool native = true);

  at::Tensor dense() const override;
  at::Tensor product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                     bool transposed) const override;
  at::Tensor convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                         const ConvolutionSteps& steps) const override;
  const char* kept_in() const override { return "eight bits"; }
  int64_t nbytes() const override;
  at::Device device() const override { return values_.device(); }

 private:
  void arrange(const at::Tensor& q, const at::Tensor& scales);
  bool computes(const at::Tensor& x) const;
  at::Tensor kernel_product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                            bool transposed) const;
  at::Tensor composed_product(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                              bool transposed) const;
  at::Tensor kernel_convolution(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                                const ConvolutionSteps& steps) const;

  bool tiled_;          // in the kernels' layout
  at::Tensor values_;   // int8
  at::Tensor scales_;   // fp32, of each output, padded as the values are
  at::Tensor offsets_;  // int32: 128 times the sums that the kernels take off, if tiled
};

/// Whether a tensor stands for a weight that is kept in eight or four bits.
inline bool is_quantized(const at::Tensor& weight) {
  return weight.defined() && weight.key_set().has(detail::kQuantisedKey);
}

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/int8_weight-inl.h>
#include <lightlora/detail/quantised_weight-inl.h>

#include <lightlora/detail/quantised_calls-inl.h>
#endif
