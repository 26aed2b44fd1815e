// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/four_bit_weight.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace lightlora {

namespace detail {

LIGHTLORA_INLINE at::Tensor nf4_code() {
  return at::tensor({-1.0F, -0.6961928009986877F, -0.5250730514526367F, -0.39491748809814453F,
                     -0.28444138169288635F, -0.18477343022823334F, -0.09105003625154495F, 0.0F,
                     0.07958029955625534F, 0.16093020141124725F, 0.24611230194568634F,
                     0.33791524171829224F, 0.44070982933044434F, 0.5626170039176941F,
                     0.7229568362236023F, 1.0F});
}

LIGHTLORA_INLINE at::Tensor dynamic_code() {
  constexpr int kExponents = 7;
  std::vector<at::Tensor> values{at::tensor({0.0F, 1.0F})};
  for (int i = 0; i < kExponents; ++i) {
    const at::Tensor bounds = at::linspace(0.1, 1, (int64_t{1} << i) + 1, at::kFloat);
    const int64_t count = bounds.numel() - 1;
    const at::Tensor means = (bounds.narrow(0, 0, count) + bounds.narrow(0, 1, count)) / 2.0;
    const double power = std::pow(10.0, i - (kExponents - 1));
    values.push_back(means * power);
    values.push_back(means * -power);
  }
  return std::get<0>(at::cat(values).sort());
}

namespace four_bit {

// What stands for 0 in NF4.
constexpr int kNumberOfZero = 7;

// The number of each value: that of the nearest of a sorted code, the lower one in the middle.
inline at::Tensor nearest(const at::Tensor& values, const at::Tensor& code) {
  const int64_t count = code.numel() - 1;
  const at::Tensor bounds = (code.narrow(0, 0, count) + code.narrow(0, 1, count)) / 2;
  return at::bucketize(values, bounds, /*out_int32=*/true).to(at::kByte);
}

// The values in blocks, each with its largest magnitude; the last block may be shorter.
struct Scaled {
  at::Tensor values, largest;
};

inline Scaled scaled_blocks(const at::Tensor& flat, int64_t block) {
  const int64_t full = flat.numel() / block * block;
  const at::Tensor rows = flat.narrow(0, 0, full).view({-1, block});
  constexpr double kLeast = 1e-38;
  Scaled all;
  all.largest = rows.numel() > 0 ? rows.abs().amax(1) : at::zeros({0}, flat.options());
  const at::Tensor factor = all.largest.clamp_min(kLeast).reciprocal().unsqueeze(1);
  all.values = (rows * factor).clamp(-1, 1).flatten();
  if (full == flat.numel()) return all;
  const at::Tensor rest = flat.narrow(0, full, flat.numel() - full);
  const at::Tensor largest = rest.abs().max().clamp_min(kLeast);
  all.values = at::cat({all.values, (rest / largest).clamp(-1, 1)});
  all.largest = at::cat({all.largest, largest.unsqueeze(0)});
  return all;
}

// The factors of blocks, in eight bits, around their mean.
inline void quantise_factors(FourBitParts& parts) {
  const at::Tensor mean = parts.absmax.mean();
  const Scaled scaled = scaled_blocks(parts.absmax - mean, parts.nested_block);
  parts.nested_code = dynamic_code().to(parts.absmax.device());
  parts.absmax = nearest(scaled.values, parts.nested_code);
  parts.nested_absmax = scaled.largest;
  parts.offset = mean.item<float>();
}

// Values of blocks of a code, each times the factor of its block.
inline at::Tensor times_factors(const at::Tensor& values, const at::Tensor& factors,
                                int64_t block) {
  const int64_t full = values.numel() / block * block, blocks = full / block;
  const at::Tensor whole =
      values.narrow(0, 0, full).view({-1, block}) * factors.narrow(0, 0, blocks).unsqueeze(1);
  if (full == values.numel()) return whole.flatten();
  return at::cat(
      {whole.flatten(), values.narrow(0, full, values.numel() - full) * factors[blocks]});
}

// The same in one pass: 16 products for each block, which are rounded once.
template <typename T>
void unpack(const FourBitParts& parts, const at::Tensor& factors, at::Tensor& to) {
  const auto* packed = parts.packed.const_data_ptr<uint8_t>();
  const auto* code = parts.code.const_data_ptr<float>();
  const auto* factor = factors.const_data_ptr<float>();
  T* values = to.mutable_data_ptr<T>();
  const int64_t count = to.numel(), block = parts.block;
  at::parallel_for(0, factors.numel(), 512, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T table[16];
      for (int i = 0; i < 16; ++i) table[i] = static_cast<T>(code[i] * factor[b]);
      const int64_t last = std::min(count, (b + 1) * block);
      int64_t i = b * block;
      for (; i + 1 < last; i += 2) {
        const uint8_t both = packed[i / 2];
        values[i] = table[both >> 4];
        values[i + 1] = table[both & 15];
      }
      if (i < last) values[i] = table[packed[i / 2] >> 4];
    }
  });
}

}  // namespace four_bit

}  // namespace detail

LIGHTLORA_INLINE bool FourBitWeight::fits(const at::Tensor& weight) {
  const auto dtype = weight.scalar_type();
  const bool narrow = dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
  return narrow && weight.numel() > 0 && weight.dim() >= 2 && !is_quantized(weight);
}

LIGHTLORA_INLINE FourBitWeight::FourBitWeight(const at::Tensor& weight, bool double_quant)
    : QuantisedWeight(weight.sizes().vec(), weight.scalar_type()) {
  using namespace detail::four_bit;
  const at::NoGradGuard no_grad;
  const Scaled scaled = scaled_blocks(weight.detach().flatten().to(at::kFloat), parts_.block);
  parts_.code = detail::nf4_code().to(weight.device());
  at::Tensor q = nearest(scaled.values, parts_.code);
  if (q.numel() % 2 != 0) q = at::constant_pad_nd(q, {0, 1}, kNumberOfZero);
  const at::Tensor pairs = q.view({-1, 2});
  parts_.packed = at::bitwise_or(pairs.select(1, 0) * 16, pairs.select(1, 1));
  parts_.absmax = scaled.largest;
  if (double_quant) quantise_factors(parts_);
}

LIGHTLORA_INLINE FourBitWeight::FourBitWeight(FourBitParts parts, std::vector<int64_t> sizes,
                                              at::ScalarType dtype)
    : QuantisedWeight(std::move(sizes), dtype), parts_(std::move(parts)) {}

LIGHTLORA_INLINE at::Tensor FourBitWeight::factors() const {
  if (parts_.absmax.scalar_type() == at::kFloat) return parts_.absmax;
  const at::Tensor values = parts_.nested_code.index_select(0, parts_.absmax.to(at::kInt));
  return detail::four_bit::times_factors(values, parts_.nested_absmax, parts_.nested_block) +
         parts_.offset;
}

LIGHTLORA_INLINE at::Tensor FourBitWeight::dense() const {
  using namespace detail::four_bit;
  const at::NoGradGuard no_grad;
  const at::Tensor factor = factors();
  if (parts_.packed.is_cpu()) {
    at::Tensor full = at::empty(sizes_, dtype_);
    dtype_ == at::kFloat  ? unpack<float>(parts_, factor, full)
    : dtype_ == at::kHalf ? unpack<at::Half>(parts_, factor, full)
                          : unpack<at::BFloat16>(parts_, factor, full);
    return full;
  }
  const at::Tensor numbers =
      at::stack({parts_.packed.div(16, "floor"), parts_.packed.bitwise_and(15)}, 1)
          .flatten()
          .to(at::kInt);
  const int64_t count = c10::multiply_integers(sizes_);
  const at::Tensor values = parts_.code.index_select(0, numbers.narrow(0, 0, count));
  return times_factors(values, factor, parts_.block).to(dtype_).view(sizes_);
}

LIGHTLORA_INLINE int64_t FourBitWeight::nbytes() const {
  int64_t bytes = 0;
  for (const auto* part :
       {&parts_.packed, &parts_.code, &parts_.absmax, &parts_.nested_code, &parts_.nested_absmax}) {
    if (part->defined()) bytes += static_cast<int64_t>(part->nbytes());
  }
  return bytes;
}

}  // namespace lightlora
