// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/vectors.h"

// Vectors of AVX-512 for kernels that are chosen at run time: each function names its instruction
// set, so that a build for any x86-64 has them. Where those of kernels/vectors.h are: elsewhere
// SD_SIMD is 0 and none of these are declared.
#define SD_SIMD SD_VECTORS
#if SD_SIMD
#include <immintrin.h>
#define SD_SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define SD_SIMD_INLINE __attribute__((always_inline)) SD_SIMD_TARGET inline
// Around all code that uses them: GCC 12's own intrinsics begin with a variable that they leave as
// it is, and it warns about that where they are inlined.
#if defined(__clang__)
#define SD_SIMD_BEGIN
#define SD_SIMD_END
#define SD_SIMD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SD_SIMD_BEGIN                                                                  \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define SD_SIMD_END _Pragma("GCC diagnostic pop")
#define SD_SIMD_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace sd::simd {

/// A bfloat16 as it lies in memory.
using Bf16 = passes::Half16;

/// Elements of T in a word of 32 bits: what one step of a product takes from each side.
template <typename T>
constexpr int kPair = sizeof(float) / sizeof(T);

/// Words in a vector.
constexpr int kLanes = 16;

#if SD_SIMD
SD_SIMD_BEGIN

// Instructions for fp32 alone.
inline bool has_avx512() {
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }();
  return has;
}

inline bool has_avx512_bf16() {
  static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16");
  return has;
}

// Vectors of words.
SD_SIMD_INLINE __m512i load_words(const void* from) { return _mm512_loadu_si512(from); }
SD_SIMD_INLINE __m512i load_words(__mmask16 mask, const void* from) {
  return _mm512_maskz_loadu_epi32(mask, from);
}
SD_SIMD_INLINE void store_words(void* to, __m512i words) { _mm512_storeu_si512(to, words); }

/// The word at `from` in every lane.
SD_SIMD_INLINE __m512i broadcast_word(const void* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof(word));
  return _mm512_set1_epi32(word);
}

/// The first `count` of 16 lanes; none if it is negative.
SD_SIMD_INLINE __mmask16 first_lanes(int64_t count) {
  if (count <= 0) return 0;
  return static_cast<__mmask16>(count >= kLanes ? 0xFFFFU : (1U << count) - 1U);
}

/// sum + a b in each lane; of bf16, both pairs of it.
template <typename T>
SD_SIMD_INLINE __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
  if constexpr (kPair<T> == 2) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  } else {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
}

/// Pairs of bf16: `even` in the lower halves of the words, `odd` in the upper ones.
SD_SIMD_INLINE __m512i pair_of(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/// Two rows of 32 bf16 as 32 pairs.
SD_SIMD_INLINE void interleave(__m512i even, __m512i odd, __m512i& low, __m512i& high) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  low = _mm512_permutex2var_epi16(even, order, odd);
  high = _mm512_permutex2var_epi16(even, _mm512_add_epi16(order, _mm512_set1_epi16(16)), odd);
}

/// 2^x. Error: 1e-7 of the result for fp32, 4e-6 where the result becomes bf16.
template <typename T>
SD_SIMD_INLINE __m512 exp2_of(__m512 x) {
  // The fraction as the distance from the integer below; a NaN stays one, of -inf it is 0.
  const __m512 f = _mm512_reduce_ps(x, 0x09);
  __m512 y;
  if constexpr (kPair<T> == 2) {
    y = _mm512_set1_ps(1.3534168e-2F);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.2011461e-2F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4144276e-1F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9300383e-1F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0000026F));
  } else {
    y = _mm512_set1_ps(2.1702255e-4F);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.2439688e-3F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6788410e-3F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5483342e-2F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022984e-1F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314698e-1F));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0F));
  }
  return _mm512_scalef_ps(y, x);  // times 2 to the integer below x
}

/// Rows become columns and columns rows, of 16 by 16 words.
SD_SIMD_INLINE void transpose(__m512i (&rows)[kLanes]) {
  __m512i t[kLanes];
  SD_SIMD_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  SD_SIMD_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // rows[4g + c] holds column 4l + c of the rows 4g to 4g + 3 in its quarter l.
  SD_SIMD_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xDD);
    const __m512i low2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xDD);
    t[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(low, low2, 0xDD);
    t[4 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xDD);
  }
  SD_SIMD_UNROLL
  for (int i = 0; i < kLanes; ++i) rows[i] = t[i];
}

SD_SIMD_END
#endif

}  // namespace sd::simd
