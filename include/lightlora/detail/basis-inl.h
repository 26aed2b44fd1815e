// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/basis.h>

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <vector>

// Bases are a file format: their bits must not depend on compiler flags. Contracting a * b + c into
// one rounding would change them, so it is switched off for the functions that make them.
#if defined(__clang__)
#define LIGHTLORA_EXACT_FUNCTION
#define LIGHTLORA_EXACT_BODY _Pragma("clang fp contract(off)")
#elif defined(__GNUC__)
#define LIGHTLORA_EXACT_FUNCTION \
  __attribute__((noinline, optimize("fp-contract=off", "no-fast-math")))
#define LIGHTLORA_EXACT_BODY
#else
#define LIGHTLORA_EXACT_FUNCTION
#define LIGHTLORA_EXACT_BODY
#endif

namespace lightlora {

LIGHTLORA_INLINE uint64_t Philox::next() {
  if (used_ == 2) {
    refill();
    used_ = 0;
  }
  return buffer_[used_++];
}

LIGHTLORA_INLINE void Philox::refill() {
  uint32_t c[4] = {low(block_), high(block_), low(stream_), high(stream_)};
  uint32_t key[2] = {low(seed_), high(seed_)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next_c[4] = {high(p1) ^ c[1] ^ key[0], low(p1), high(p0) ^ c[3] ^ key[1],
                                low(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next_c[i];
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  buffer_[0] = (uint64_t{c[1]} << 32) | c[0];
  buffer_[1] = (uint64_t{c[3]} << 32) | c[2];
  ++block_;
}

namespace detail {

// 64-bit FNV-1a over the text that names a basis.
inline uint64_t stream_of(Side side, const std::string& name, int64_t count, int64_t width) {
  const std::string text = "lightlora basis " + std::to_string(kBasisVersion) +
                           (side == Side::down ? " down " : " up ") + std::to_string(count) + "x" +
                           std::to_string(width) + " " + name;
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001B3ULL;
  return hash;
}

LIGHTLORA_EXACT_FUNCTION LIGHTLORA_INLINE double exact_log(double x) {
  LIGHTLORA_EXACT_BODY
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m = m * 2.0;
    --exponent;
  }
  const double t = (m - 1.0) / (m + 1.0);
  const double t2 = t * t;
  double sum = 0.0;
  for (int k = 27; k >= 1; k -= 2) sum = sum * t2 + 1.0 / k;  // t2 < 0.03: far below one ulp
  return exponent * 0.69314718055994531 + 2.0 * (t * sum);
}

// Standard normal values by Marsaglia's polar method.
LIGHTLORA_EXACT_FUNCTION inline void fill_normal(Philox& random, std::vector<double>& values) {
  LIGHTLORA_EXACT_BODY
  for (std::size_t i = 0; i < values.size();) {
    const double a = 2.0 * random.uniform() - 1.0;
    const double b = 2.0 * random.uniform() - 1.0;
    const double s = a * a + b * b;
    if (s >= 1.0 || s == 0.0) continue;
    const double length = std::sqrt(-2.0 * exact_log(s) / s);
    values[i++] = a * length;
    if (i < values.size()) values[i++] = b * length;
  }
}

// Sum of products in eight fixed partial sums: fast, and the same order everywhere.
LIGHTLORA_EXACT_FUNCTION inline double exact_dot(const double* a, const double* b, int64_t n) {
  LIGHTLORA_EXACT_BODY
  double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) part[k] += a[i + k] * b[i + k];
  }
  for (; i < n; ++i) part[0] += a[i] * b[i];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

LIGHTLORA_EXACT_FUNCTION inline void exact_subtract(double* a, double factor, const double* b,
                                                    int64_t n) {
  LIGHTLORA_EXACT_BODY
  for (int64_t i = 0; i < n; ++i) a[i] -= factor * b[i];
}

// Gram-Schmidt over `count` vectors of `width` values, twice: the second pass takes the error from
// about condition * epsilon to epsilon.
LIGHTLORA_EXACT_FUNCTION inline void orthonormalise(std::vector<double>& rows, int64_t count,
                                                    int64_t width) {
  LIGHTLORA_EXACT_BODY
  for (int64_t i = 0; i < count; ++i) {
    double* row = rows.data() + i * width;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* other = rows.data() + j * width;
        exact_subtract(row, exact_dot(row, other, width), other, width);
      }
    }
    const double length = std::sqrt(exact_dot(row, row, width));
    for (int64_t k = 0; k < width; ++k) row[k] = row[k] / length;
  }
}

}  // namespace detail

LIGHTLORA_INLINE at::Tensor make_basis(Side side, int64_t count, int64_t width, uint64_t seed,
                                       const std::string& layer_name, AuxInit kind) {
  TORCH_CHECK_VALUE(count >= 1 && count <= width, "'", layer_name,
                    "': expected 1 <= directions <= ", width, " (the layer's width), got ", count);
  Philox random(seed, detail::stream_of(side, layer_name, count, width));
  std::vector<double> rows(static_cast<std::size_t>(count * width));
  detail::fill_normal(random, rows);
  double factor = 1.0;
  if (kind == AuxInit::orthogonal) detail::orthonormalise(rows, count, width);
  if (kind == AuxInit::normal_scaled) factor = 1.0 / std::sqrt(static_cast<double>(width));

  at::Tensor basis = at::empty({count, width}, at::TensorOptions().dtype(at::kFloat));
  float* out = basis.mutable_data_ptr<float>();
  for (std::size_t i = 0; i < rows.size(); ++i) out[i] = static_cast<float>(rows[i] * factor);
  return side == Side::down ? basis : basis.t().contiguous();
}

}  // namespace lightlora

#undef LIGHTLORA_EXACT_FUNCTION
#undef LIGHTLORA_EXACT_BODY
