// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/thin_kernels.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

// Products of rows or images in eight bits with weights in eight bits, on a CPU with AVX-512 VNNI:
// one pass brings a row into eight bits, the product adds up in 32 bits, and its result is scaled,
// takes its bias and is written in the caller's dtype before it leaves the registers. LibTorch's
// own product of int8 matrices writes 32-bit sums that a second pass would have to read again, and
// it has no convolution.
//
// The instruction multiplies unsigned by signed bytes: inputs are stored as q + 128, and 128 times
// the sum of the weights is taken off at the end (`offsets`).
#if LIGHTLORA_THIN_KERNELS && defined(__has_include)
#if __has_include(<immintrin.h>)
#define LIGHTLORA_INT8_KERNELS 1
// GCC takes the undefined vectors that its own intrinsics begin with for mistakes.
#if defined(__clang__)
#define LIGHTLORA_INT8_QUIET_BEGIN
#define LIGHTLORA_INT8_QUIET_END
#else
#define LIGHTLORA_INT8_QUIET_BEGIN                                                     \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define LIGHTLORA_INT8_QUIET_END _Pragma("GCC diagnostic pop")
#endif
LIGHTLORA_INT8_QUIET_BEGIN
#include <immintrin.h>
LIGHTLORA_INT8_QUIET_END
#endif
#endif
#ifndef LIGHTLORA_INT8_KERNELS
#define LIGHTLORA_INT8_KERNELS 0
#endif

namespace lightlora::detail::int8 {

using thin::Half16;

/// Whether this processor has the instructions.
inline bool has_kernels() {
#if LIGHTLORA_INT8_KERNELS
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  }();
  return has;
#else
  return false;
#endif
}

/// Side of the square tiles that the weights of linear layers lie in, and rows of one product.
constexpr int64_t kTile = 64, kRows = 6;
/// The longest sums that 32 bits hold for certain: 255 * 127 * 65536 < 2^31.
constexpr int64_t kLongestSum = 65536;
/// The largest number of eight bits in use, on both sides of zero.
constexpr float kLargest = 127.0F;
/// Zero as an unsigned byte.
constexpr uint8_t kZero = 128;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

/// Rows (N, width) brought into eight bits: q = round(x * factor / scale) + 128 with one scale a row.
template <typename T>
struct QuantiseRows {
  const T* x;
  int64_t width, padded;  ///< columns of x, and of `to`
  const float* factors;   ///< (width), or null
  uint8_t* to;            ///< (N, padded)
  float* scales;          ///< (N)
};

/// Rows times a weight that lies in tiles: y = scale_n scale_m (sum over k of q w) + bias_m.
template <typename T>
struct RowProduct {
  const uint8_t* x;  ///< (N, padded)
  int64_t padded;
  const float* row_scales;  ///< (N)
  const int8_t* tiles;      ///< (outputs / 64, padded / 4, 64, 4)
  const int32_t* offsets;   ///< 128 times the sum of each output's weights
  const float* scales;      ///< of each output
  const float* bias;        ///< of each output
  T* y;                     ///< (N, outputs)
  int64_t outputs;
};

#if LIGHTLORA_INT8_KERNELS

LIGHTLORA_INT8_QUIET_BEGIN

#define LIGHTLORA_INT8_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,fma")))
#define LIGHTLORA_INT8_INLINE LIGHTLORA_INT8_TARGET LIGHTLORA_THIN_INLINE

LIGHTLORA_INT8_INLINE __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1U << (count > 0 ? count : 0)) - 1U);
}

LIGHTLORA_INT8_INLINE __m512 load(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
LIGHTLORA_INT8_INLINE __m512 load(const Half16* from, __mmask16 mask) {
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
LIGHTLORA_INT8_INLINE void store(float* to, __mmask16 mask, __m512 value) {
  _mm512_mask_storeu_ps(to, mask, value);
}
// To the nearest, ties to even; a NaN stays one.
LIGHTLORA_INT8_INLINE void store(Half16* to, __mmask16 mask, __m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  rounded = _mm512_srli_epi32(rounded, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC0));
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(rounded));
}

// The scale of numbers whose largest is `largest`, and its inverse; NaN where a number is not
// finite, so that the results are not either.
LIGHTLORA_THIN_INLINE float scale_of(float largest, bool finite, float* inverse) {
  *inverse = largest > 0 ? kLargest / largest : 0.0F;
  // Of numbers so small that the inverse is infinite nothing is left.
  if (!(*inverse <= std::numeric_limits<float>::max())) *inverse = 0.0F;
  return finite ? largest / kLargest : std::numeric_limits<float>::quiet_NaN();
}

LIGHTLORA_INT8_INLINE bool is_finite(__m512 sum) {
  // x - x is 0 for what is finite, else NaN.
  return _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q) == 0;
}

LIGHTLORA_INT8_INLINE __m512i quantised(__m512 x, __m512 inverse) {
  const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
  const __m512i bounded = _mm512_max_epi32(q, _mm512_set1_epi32(-127));
  return _mm512_add_epi32(_mm512_min_epi32(bounded, _mm512_set1_epi32(127)),
                          _mm512_set1_epi32(128));
}

template <typename T>
LIGHTLORA_INT8_INLINE __m512 scaled(const T* x, const float* factors, __mmask16 mask) {
  const __m512 value = load(x, mask);
  return factors ? _mm512_mul_ps(value, load(factors, mask)) : value;
}

template <typename T>
LIGHTLORA_INT8_TARGET __attribute__((noinline)) void run(const QuantiseRows<T>& call, int64_t begin,
                                                         int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const T* x = call.x + n * call.width;
    uint8_t* to = call.to + n * call.padded;
    __m512 largest = _mm512_setzero_ps(), rest = _mm512_setzero_ps();
    for (int64_t k = 0; k < call.width; k += 16) {
      const __mmask16 mask = first(call.width - k);
      const __m512 v = scaled(x + k, call.factors ? call.factors + k : nullptr, mask);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
      rest = _mm512_add_ps(rest, _mm512_sub_ps(v, v));
    }
    float inverse;
    call.scales[n] = scale_of(_mm512_reduce_max_ps(largest), is_finite(rest), &inverse);
    const __m512 factor = _mm512_set1_ps(inverse);
    for (int64_t k = 0; k < call.padded; k += 16) {
      const __mmask16 mask = first(call.width - k);
      const __m512 v = scaled(x + k, call.factors ? call.factors + k : nullptr, mask);
      _mm_mask_storeu_epi8(to + k, first(call.padded - k),
                           _mm512_cvtepi32_epi8(quantised(v, factor)));
    }
  }
}

// What `Rows` rows sum up with the 64 outputs of a panel. The sums are an array of this function
// alone, which the compiler keeps in registers.
template <int Rows>
LIGHTLORA_INT8_INLINE void add_up(const uint8_t* x, int64_t padded, const int8_t* w,
                                  int32_t (*to)[kTile]) {
  constexpr int kWide = kTile / 16;
  __m512i sums[Rows][kWide];
  LIGHTLORA_THIN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    LIGHTLORA_THIN_UNROLL
    for (int j = 0; j < kWide; ++j) sums[r][j] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < padded; k += 4, w += 4 * kTile) {
    __m512i wide[kWide];
    LIGHTLORA_THIN_UNROLL
    for (int j = 0; j < kWide; ++j) wide[j] = _mm512_loadu_si512(w + 64 * j);
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * padded + k, sizeof(four));
      const __m512i in = _mm512_set1_epi32(four);
      LIGHTLORA_THIN_UNROLL
      for (int j = 0; j < kWide; ++j) sums[r][j] = _mm512_dpbusd_epi32(sums[r][j], in, wide[j]);
    }
  }
  LIGHTLORA_THIN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    LIGHTLORA_THIN_UNROLL
    for (int j = 0; j < kWide; ++j) _mm512_storeu_si512(to[r] + 16 * j, sums[r][j]);
  }
}

template <int Rows, typename T>
LIGHTLORA_INT8_INLINE void block(const RowProduct<T>& call, int64_t n, int64_t panel) {
  alignas(64) int32_t sums[Rows][kTile];
  add_up<Rows>(call.x + n * call.padded, call.padded, call.tiles + panel * kTile * call.padded,
               sums);
  for (int64_t m = panel * kTile, i = 0; i < kTile && m < call.outputs; m += 16, i += 16) {
    const __mmask16 mask = first(call.outputs - m);
    const __m512i offset = _mm512_loadu_si512(call.offsets + m);
    const __m512 scale = _mm512_loadu_ps(call.scales + m), bias = _mm512_loadu_ps(call.bias + m);
    for (int r = 0; r < Rows; ++r) {
      const __m512i whole = _mm512_sub_epi32(_mm512_loadu_si512(sums[r] + i), offset);
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(call.row_scales[n + r]));
      store(call.y + (n + r) * call.outputs + m, mask,
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), both, bias));
    }
  }
}

/// Rows [begin, end) times one panel of 64 outputs.
template <typename T>
LIGHTLORA_INT8_TARGET __attribute__((noinline)) void run(const RowProduct<T>& call, int64_t begin,
                                                         int64_t end, int64_t panel) {
  int64_t n = begin;
  for (; n + kRows <= end; n += kRows) block<kRows>(call, n, panel);
  for (; n + 2 <= end; n += 2) block<2>(call, n, panel);
  if (n < end) block<1>(call, n, panel);
}

// In each lane the transpose of four by four bytes.
LIGHTLORA_INT8_INLINE __m512i transposed_lanes(__m512i v) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order));
}

/// The tiles of the transpose of a weight (64 rows, 64 columns): panel `to_panel` of the transpose.
/// `offsets` (64) gets 128 times the sums.
LIGHTLORA_INT8_TARGET inline void transpose_tiles(const int8_t* from, int64_t rows, int64_t columns,
                                                  int64_t to_panel, int8_t* to, int32_t* offsets) {
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                     _mm512_setzero_si512()};
  const __m512i all = _mm512_set1_epi8(static_cast<char>(kZero));
  to += to_panel * kTile * rows;
  for (int64_t row = 0; row < rows; row += kTile) {
    const int8_t* tile = from + row * columns + to_panel * kTile * kTile;
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < 4; ++j) {
        __m512i v[4];
        for (int a = 0; a < 4; ++a) {
          v[a] = transposed_lanes(_mm512_loadu_si512(tile + (4 * i + a) * 256 + 64 * j));
        }
        // Lanes are columns here: lane L of v[a] is row group L, column group a.
        const __m512i t0 = _mm512_shuffle_i32x4(v[0], v[1], 0x44),
                      t1 = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
        const __m512i t2 = _mm512_shuffle_i32x4(v[0], v[1], 0xEE),
                      t3 = _mm512_shuffle_i32x4(v[2], v[3], 0xEE);
        const __m512i u[4] = {
            _mm512_shuffle_i32x4(t0, t1, 0x88), _mm512_shuffle_i32x4(t0, t1, 0xDD),
            _mm512_shuffle_i32x4(t2, t3, 0x88), _mm512_shuffle_i32x4(t2, t3, 0xDD)};
        for (int l = 0; l < 4; ++l) {
          _mm512_storeu_si512(to + (row / 4 + 4 * j + l) * 256 + 64 * i, u[l]);
          sums[i] = _mm512_dpbusd_epi32(sums[i], all, u[l]);
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) _mm512_storeu_si512(offsets + to_panel * kTile + 16 * i, sums[i]);
}

LIGHTLORA_INT8_QUIET_END

#endif

}  // namespace lightlora::detail::int8
