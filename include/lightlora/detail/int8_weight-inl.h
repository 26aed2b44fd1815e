// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/int8_images.h>
#include <lightlora/detail/quantised_weight.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

namespace lightlora {

namespace detail::int8 {

inline const int8_t* bytes_of(const at::Tensor& t) { return t.const_data_ptr<int8_t>(); }

// The inverse of each scale; 0 for those of zeros, and of what is not finite, whose results the
// scale itself makes NaN.
inline at::Tensor inverse_of(const at::Tensor& scales) {
  const auto usable = scales > std::numeric_limits<float>::min();
  return at::where(usable, scales.reciprocal(), at::zeros_like(scales));
}

// Calls body(type's example) with the type that the kernels read this dtype as.
template <typename Body>
void with_type(at::ScalarType dtype, const Body& body) {
  dtype == at::kFloat ? body(float()) : body(Half16());
}

template <typename T>
const T* data_of(const at::Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* data_of(at::Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A vector of fp32, padded with zeros.
inline at::Tensor padded_to(int64_t count, const std::optional<at::Tensor>& values) {
  at::Tensor all = at::zeros({count}, at::kFloat);
  if (values) all.narrow(0, 0, values->numel()).copy_(values->detach());
  return all;
}

// What a product needs of a weight, in the direction that is wanted.
struct Operand {
  at::Tensor tiles, offsets, scales;
};

// A matrix (out, in) in tiles of 64 by 64, both sizes padded.
inline at::Tensor tiled(const at::Tensor& matrix) {
  const int64_t out = matrix.size(0), in = matrix.size(1);
  return matrix.view({out / kTile, kTile, in / 4, 4}).permute({0, 2, 1, 3}).contiguous();
}

inline at::Tensor untiled(const at::Tensor& tiles) {
  return tiles.permute({0, 2, 1, 3}).reshape({tiles.size(0) * kTile, -1});
}

// Kernels (out, in, kh, kw) as the convolutions read them, both counts padded to eight.
inline at::Tensor tiled_kernels(const at::Tensor& k) {
  return k.view({k.size(0) / kChannels, kChannels, k.size(1) / 4, 4, k.size(2), k.size(3)})
      .permute({0, 4, 5, 2, 1, 3})
      .contiguous();
}

inline at::Tensor untiled_kernels(const at::Tensor& tiles) {
  const auto plain = tiles.permute({0, 4, 3, 5, 1, 2});
  return plain.reshape(
      {tiles.size(0) * kChannels, tiles.size(3) * 4, tiles.size(1), tiles.size(2)});
}

#if LIGHTLORA_INT8_KERNELS

inline Operand transposed_operand(const at::Tensor& tiles) {
  const int64_t out = tiles.size(0) * kTile, in = tiles.size(1) * 4;
  Operand t{at::empty({out * in}, at::kChar), at::empty({in}, at::kInt),
            at::ones({in}, at::kFloat)};
  at::parallel_for(0, in / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      transpose_tiles(bytes_of(tiles), out, in, panel, data_of<int8_t>(t.tiles),
                      data_of<int32_t>(t.offsets));
    }
  });
  return t;
}

inline Operand transposed_kernels(const at::Tensor& tiles, const ImageShape& channels) {
  const int64_t out = tiles.size(0) * kChannels, in = tiles.size(3) * 4;
  const int64_t ky = tiles.size(1), kx = tiles.size(2);
  Operand t{at::empty({tiles.numel()}, at::kChar), at::empty({ky, in}, at::kInt),
            at::ones({in}, at::kFloat)};
  at::parallel_for(0, in / kChannels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      transpose_kernels(bytes_of(tiles), channels, out, ky, kx, block, data_of<int8_t>(t.tiles),
                        data_of<int32_t>(t.offsets));
    }
  });
  return t;
}

// All rows times all outputs: some rows at a time, so that they stay near while the weight passes.
template <typename T>
void multiply(const RowProduct<T>& product, int64_t rows) {
  constexpr int64_t kBlock = 16 * kRows;
  const int64_t panels = (product.outputs + kTile - 1) / kTile;
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / panels * kBlock;
      run(product, first, std::min(rows, first + kBlock), i % panels);
    }
  });
}

template <typename T>
void convolve(const QuantiseImage<T>& image, const ImageProduct<T>& product) {
  at::parallel_for(0, image.shape.height, 1,
                   [&](int64_t begin, int64_t end) { run(image, begin, end); });
  const int64_t pixels = product.out_height * image.shape.pitch();
  constexpr int64_t kBlock = 16 * kVectors;
  at::parallel_for(0, (pixels + kBlock - 1) / kBlock, 1,
                   [&](int64_t begin, int64_t end) { run(product, begin, end); });
}

#endif

inline bool is_narrow(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// What a kernel, which knows fp32 and bf16, makes of inputs in any of the three.
template <typename Kernel>
at::Tensor through_float(const at::Tensor& x, const Kernel& kernel) {
  return x.scalar_type() == at::kHalf ? kernel(x.to(at::kFloat)).to(at::kHalf) : kernel(x);
}

}  // namespace detail::int8

LIGHTLORA_INLINE bool Int8Weight::fits(const at::Tensor& weight) {
  using namespace detail::int8;
  if (!is_narrow(weight.scalar_type()) || weight.numel() == 0 || is_quantized(weight)) return false;
  if (weight.dim() == 2) return std::max(weight.size(0), weight.size(1)) < kLongestSum;
  return weight.dim() == 4 && std::max(weight.size(2), weight.size(3)) <= kWidestKernel &&
         std::max(weight.size(0), weight.size(1)) * weight.size(3) < kLongestSum;
}

LIGHTLORA_INLINE Int8Weight::Int8Weight(const at::Tensor& weight, bool native)
    : QuantisedWeight(weight.sizes().vec(), weight.scalar_type()),
      tiled_(native && weight.is_cpu() && detail::int8::has_kernels()) {
  using namespace detail::int8;
  const at::NoGradGuard no_grad;
  const at::Tensor full = weight.detach().to(at::kFloat), rows = full.flatten(1);
  const at::Tensor scales = rows.abs().amax(1) / kLargest;
  const at::Tensor q = (rows * inverse_of(scales).unsqueeze(1))
                           .round_()
                           .clamp_(-kLargest, kLargest)
                           .to(at::kChar)
                           .view(sizes_);
  arrange(q, scales);
}

LIGHTLORA_INLINE Int8Weight::Int8Weight(const at::Tensor& q, const at::Tensor& scales,
                                        at::ScalarType dtype, bool native)
    : QuantisedWeight(q.sizes().vec(), dtype),
      tiled_(native && q.is_cpu() && detail::int8::has_kernels()) {
  const at::NoGradGuard no_grad;
  arrange(q, scales);
}

// Puts the values where the kernels want them.
LIGHTLORA_INLINE void Int8Weight::arrange(const at::Tensor& q, const at::Tensor& scales) {
  using namespace detail::int8;
  if (!tiled_) {
    values_ = q.contiguous();
    scales_ = scales;
    return;
  }
  const bool flat = q.dim() == 2;
  const int64_t side = flat ? kTile : kChannels;
  const int64_t out = round_up(q.size(0), side), in = round_up(q.size(1), side);
  auto padded = sizes_;
  padded[0] = out;
  padded[1] = in;
  at::Tensor all = at::zeros(padded, at::kChar);
  all.narrow(0, 0, q.size(0)).narrow(1, 0, q.size(1)).copy_(q);
  scales_ = padded_to(out, scales);
  values_ = flat ? tiled(all) : tiled_kernels(all);
  // A convolution takes them off row by row of its kernels.
  const at::Tensor sums = flat ? all.sum(1, false, at::kInt) : all.sum({1, 3}, false, at::kInt).t();
  offsets_ = (sums * static_cast<int64_t>(kZero)).to(at::kInt).contiguous();
}

LIGHTLORA_INLINE at::Tensor Int8Weight::dense() const {
  const at::NoGradGuard no_grad;
  at::Tensor q = values_;
  if (tiled_) {
    q = sizes_.size() == 2 ? detail::int8::untiled(q) : detail::int8::untiled_kernels(q);
    q = q.narrow(0, 0, sizes_[0]).narrow(1, 0, sizes_[1]);
  }
  std::vector<int64_t> shape(sizes_.size(), 1);
  shape[0] = sizes_[0];
  return (q.to(at::kFloat) * scales_.narrow(0, 0, sizes_[0]).view(shape)).to(dtype_).contiguous();
}

LIGHTLORA_INLINE int64_t Int8Weight::nbytes() const {
  const int64_t offsets = offsets_.defined() ? static_cast<int64_t>(offsets_.nbytes()) : 0;
  return static_cast<int64_t>(values_.nbytes() + scales_.nbytes()) + offsets;
}

LIGHTLORA_INLINE bool Int8Weight::computes(const at::Tensor& x) const {
  return detail::int8::is_narrow(x.scalar_type()) && x.numel() > 0 &&
         x.device() == values_.device();
}

LIGHTLORA_INLINE at::Tensor Int8Weight::product(const at::Tensor& x,
                                                const std::optional<at::Tensor>& bias,
                                                bool transposed) const {
  const int64_t in = sizes_[transposed ? 0 : 1], out = sizes_[transposed ? 1 : 0];
  // On a GPU the product of int8 takes more than 16 rows, and sizes in steps of eight.
  const bool any_sizes = !x.is_cuda() || (x.size(0) > 16 && in % 8 == 0 && out % 8 == 0);
  if (!computes(x) || !any_sizes) {
    return QuantisedWeight::product(x, bias, transposed);
  }
  if (!tiled_) return composed_product(x, bias, transposed);
  return detail::int8::through_float(
      x, [&](const at::Tensor& input) { return kernel_product(input, bias, transposed); });
}

// The same of LibTorch's operators.
LIGHTLORA_INLINE at::Tensor Int8Weight::composed_product(const at::Tensor& x,
                                                         const std::optional<at::Tensor>& bias,
                                                         bool transposed) const {
  using namespace detail::int8;
  at::Tensor rows = x.to(at::kFloat);
  if (transposed) rows = rows * scales_;
  const at::Tensor scales = rows.abs().amax(1, /*keepdim=*/true) / kLargest;
  const at::Tensor q =
      (rows * inverse_of(scales)).round_().clamp_(-kLargest, kLargest).to(at::kChar);
  at::Tensor y = at::_int_mm(q, transposed ? values_ : values_.t()).to(at::kFloat) * scales;
  if (!transposed) y = y * scales_;
  if (bias) y = y + bias->to(at::kFloat);
  return y.to(x.scalar_type());
}

LIGHTLORA_INLINE at::Tensor Int8Weight::kernel_product(const at::Tensor& given,
                                                       const std::optional<at::Tensor>& bias,
                                                       bool transposed) const {
#if LIGHTLORA_INT8_KERNELS
  using namespace detail::int8;
  const at::Tensor x = given.contiguous();
  const int64_t rows = x.size(0), in = x.size(1), out = sizes_[transposed ? 1 : 0];
  const int64_t padded = round_up(in, kTile), padded_out = round_up(out, kTile);
  const Operand w = transposed ? transposed_operand(values_) : Operand{values_, offsets_, scales_};
  const at::Tensor biases = padded_to(padded_out, bias);
  at::Tensor q = at::empty({rows, padded}, at::kByte), scales = at::empty({rows}, at::kFloat);
  at::Tensor y = at::empty({rows, out}, x.options());
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const QuantiseRows<T> quantise{data_of<T>(x),
                                   in,
                                   padded,
                                   transposed ? scales_.const_data_ptr<float>() : nullptr,
                                   data_of<uint8_t>(q),
                                   data_of<float>(scales)};
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) { run(quantise, begin, end); });
    multiply(RowProduct<T>{q.const_data_ptr<uint8_t>(), padded, scales.const_data_ptr<float>(),
                           bytes_of(w.tiles), w.offsets.const_data_ptr<int32_t>(),
                           w.scales.const_data_ptr<float>(), biases.const_data_ptr<float>(),
                           data_of<T>(y), out},
             rows);
  });
  return y;
#else
  return composed_product(given, bias, transposed);
#endif
}

LIGHTLORA_INLINE at::Tensor Int8Weight::convolution(const at::Tensor& x,
                                                    const std::optional<at::Tensor>& bias,
                                                    const ConvolutionSteps& steps) const {
  bool narrow = steps.plain() && sizes_.size() == 4;
  for (std::size_t i = 0; narrow && i < 2; ++i) narrow = steps.padding[i] < sizes_[i + 2];
  if (!computes(x) || !tiled_ || !narrow) return QuantisedWeight::convolution(x, bias, steps);
  return detail::int8::through_float(
      x, [&](const at::Tensor& input) { return kernel_convolution(input, bias, steps); });
}

LIGHTLORA_INLINE at::Tensor Int8Weight::kernel_convolution(const at::Tensor& given,
                                                           const std::optional<at::Tensor>& bias,
                                                           const ConvolutionSteps& steps) const {
#if LIGHTLORA_INT8_KERNELS
  using namespace detail::int8;
  const bool transposed = steps.transposed;
  const auto& padding = steps.padding;
  const at::Tensor x = given.contiguous();
  const int64_t ky = sizes_[2], kx = sizes_[3], out = sizes_[transposed ? 1 : 0];
  const ImageShape s{x.size(1), x.size(2), x.size(3), transposed ? ky - 1 - padding[0] : padding[0],
                     transposed ? kx - 1 - padding[1] : padding[1]};
  const int64_t height = s.rows() - ky + 1, width = s.width + 2 * s.pad_x - kx + 1;
  const Operand w = transposed ? transposed_kernels(values_, {sizes_[1], s.height, s.width, 0, 0})
                               : Operand{values_, offsets_, scales_};
  const at::Tensor biases = padded_to(round_up(out, kChannels), bias);
  at::Tensor q = at::full({s.groups() * s.plane() * 4}, static_cast<int64_t>(kZero), at::kByte);
  at::Tensor scales = at::zeros({s.plane()}, at::kFloat);
  at::Tensor y = at::empty({x.size(0), out, height, width}, x.options());
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    QuantiseImage<T> image{data_of<T>(x), s, transposed ? scales_.const_data_ptr<float>() : nullptr,
                           data_of<uint8_t>(q), data_of<float>(scales)};
    ImageProduct<T> product{q.const_data_ptr<uint8_t>(),
                            scales.const_data_ptr<float>(),
                            s,
                            ky,
                            kx,
                            bytes_of(w.tiles),
                            w.offsets.const_data_ptr<int32_t>(),
                            w.scales.const_data_ptr<float>(),
                            biases.const_data_ptr<float>(),
                            data_of<T>(y),
                            out,
                            height,
                            width};
    for (int64_t i = 0; i < x.size(0); ++i) {
      convolve(image, product);
      image.x += s.channels * s.height * s.width;
      product.y += out * height * width;
    }
  });
  return y;
#else
  return QuantisedWeight::convolution(given, bias, steps);
#endif
}

}  // namespace lightlora
