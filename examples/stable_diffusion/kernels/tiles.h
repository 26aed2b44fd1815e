// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/simd.h"

// What attention is made of: products of a few rows, whose elements are broadcast, with a few
// vectors, and the packing of rows to vectors and back. A matrix is [k][lanes] in vectors or
// [row][k] in rows; nothing is padded in k.
#if SD_SIMD
SD_SIMD_BEGIN

namespace sd::simd {

/// Vectors that one tile holds side by side, and its rows: 24 sums fit into 32 registers.
constexpr int kVectors = 4;
constexpr int kRows = 6;

/// One side of a product: the word of row r and step k is at data + r * row + k * step.
template <typename T>
struct Broadcasts {
  const T* data;
  int64_t row, step;
  Broadcasts from(int64_t r, int64_t k) const { return {data + r * row + k * step, row, step}; }
};

template <int R, int V>
using Sums = __m512[R][V];

/// sums[r][v] += sum over k of a[r][k] b[k][v] in this order; b is [steps][V * kLanes] words.
template <typename T, int R, int V>
SD_SIMD_INLINE void add_product(Sums<R, V>& sums, const Broadcasts<T>& a, const float* b,
                                int64_t steps) {
  const T* from = a.data;
  for (int64_t k = 0; k < steps; ++k, from += a.step, b += V * kLanes) {
    __m512i lanes[V];
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) lanes[v] = load_words(b + v * kLanes);
    SD_SIMD_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i word = broadcast_word(from + r * a.row);
      SD_SIMD_UNROLL
      for (int v = 0; v < V; ++v) sums[r][v] = multiply_add<T>(sums[r][v], lanes[v], word);
    }
  }
}

/// Steps that are added one after the other. More of them in parts: sums of sums round less.
constexpr int64_t kSteps = 160;

template <typename T, int R, int V>
SD_SIMD_TARGET __attribute__((noinline)) void product_in_parts(Sums<R, V>& sums, Broadcasts<T> a,
                                                               const float* b, int64_t steps) {
  for (int64_t k = 0; k < steps; k += kSteps, b += kSteps * V * kLanes) {
    Sums<R, V> part = {};
    add_product<T, R, V>(part, a.from(0, k), b, steps - k < kSteps ? steps - k : kSteps);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] = _mm512_add_ps(sums[r][v], part[r][v]);
    }
  }
}

/// sums[r][v] = sum over k of a[r][k] b[k][v]
template <typename T, int R, int V>
SD_SIMD_INLINE void product(Sums<R, V>& sums, const Broadcasts<T>& a, const float* b,
                            int64_t steps) {
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  if (steps <= kSteps) return add_product<T, R, V>(sums, a, b, steps);
  // By way of memory, so that `sums` can stay in registers above.
  Sums<R, V> kept = {};
  product_in_parts<T, R, V>(kept, a, b, steps);
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) sums[r][v] = kept[r][v];
  }
}

/// sums[r][v] += sum over k of a[r][k] b[k][v] with the sums in memory, [R][V * kLanes].
template <typename T, int R, int V>
SD_SIMD_INLINE void add_rows(float* sums, const Broadcasts<T>& a, const float* b, int64_t steps) {
  Sums<R, V> tile = {};
  add_product<T, R, V>(tile, a, b, steps);
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) {
      float* sum = sums + (r * V + v) * kLanes;
      _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), tile[r][v]));
    }
  }
}

/// sums[d][v] += sum over k of a[d][k] b[k][v], with the rows d side by side in memory.
template <typename T, int V>
SD_SIMD_TARGET __attribute__((noinline)) void add_matrix(float* sums, const T* data, int64_t step,
                                                         int64_t rows, const float* b,
                                                         int64_t steps) {
  int64_t left = rows;
  // Five or six at a time, evenly.
  for (int64_t tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const int64_t r = rows - left;
    const int64_t count = (left + tiles - 1) / tiles;
    float* to = sums + r * V * kLanes;
    const Broadcasts<T> part{data + r * kPair<T>, kPair<T>, step};
    switch (count) {
      case 6:
        add_rows<T, 6, V>(to, part, b, steps);
        break;
      case 5:
        add_rows<T, 5, V>(to, part, b, steps);
        break;
      case 4:
        add_rows<T, 4, V>(to, part, b, steps);
        break;
      default:
        for (int64_t i = 0; i < count; ++i) {
          add_rows<T, 1, V>(to + i * V * kLanes, part.from(i, 0), b, steps);
        }
    }
    left -= count;
  }
}

template <typename T>
SD_SIMD_TARGET inline void add_matrix(int vectors, float* sums, const T* data, int64_t step,
                                      int64_t rows, const float* b, int64_t steps) {
  if (vectors == 1) return add_matrix<T, 1>(sums, data, step, rows, b, steps);
  if (vectors == 2) return add_matrix<T, 2>(sums, data, step, rows, b, steps);
  if (vectors == 3) return add_matrix<T, 3>(sums, data, step, rows, b, steps);
  add_matrix<T, kVectors>(sums, data, step, rows, b, steps);
}

/// `count` rows of `words` words become lanes, [words][vectors * kLanes], zeros beyond the rows.
template <typename T>
SD_SIMD_TARGET __attribute__((noinline)) void rows_to_lanes(int vectors, float* to, const T* from,
                                                            int64_t stride, int64_t count,
                                                            int64_t words) {
  for (int64_t w = 0; w < words; w += kLanes) {
    const __mmask16 mask = first_lanes(words - w);
    for (int v = 0; v < vectors; ++v) {
      __m512i block[kLanes];
      SD_SIMD_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        const int64_t row = v * kLanes + i;
        block[i] = row < count ? load_words(mask, from + row * stride + w * kPair<T>)
                               : _mm512_setzero_si512();
      }
      transpose(block);
      const int64_t rows = words - w < kLanes ? words - w : kLanes;
      for (int64_t i = 0; i < rows; ++i)
        store_words(to + ((w + i) * vectors + v) * kLanes, block[i]);
    }
  }
}

SD_SIMD_INLINE void store_row(float* to, __mmask16 mask, __m512 row) {
  _mm512_mask_storeu_ps(to, mask, row);
}
SD_SIMD_INLINE void store_row(Bf16* to, __mmask16 mask, __m512 row) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(row));
}

/// Lanes, [width][vectors * kLanes], become `count` rows again, each lane times its factor.
template <typename T>
SD_SIMD_TARGET __attribute__((noinline)) void lanes_to_rows(int vectors, T* to, int64_t stride,
                                                            const float* from, int64_t count,
                                                            int64_t width, const float* factors) {
  for (int64_t d = 0; d < width; d += kLanes) {
    const __mmask16 mask = first_lanes(width - d);
    for (int v = 0; v < vectors && v * kLanes < count; ++v) {
      const __m512 factor = _mm512_loadu_ps(factors + v * kLanes);
      __m512i block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t row = d + i < width ? d + i : width - 1;
        block[i] = _mm512_castps_si512(
            _mm512_mul_ps(_mm512_loadu_ps(from + (row * vectors + v) * kLanes), factor));
      }
      transpose(block);
      const int64_t left = count - v * kLanes;
      const int64_t rows = left < kLanes ? left : kLanes;
      for (int64_t i = 0; i < rows; ++i) {
        store_row(to + (v * kLanes + i) * stride + d, mask, _mm512_castsi512_ps(block[i]));
      }
    }
  }
}

/// Neighbouring rows as pairs, [rows / 2][width][2]; a missing last one is zero.
SD_SIMD_TARGET inline void pair_rows(Bf16* to, const Bf16* from, int64_t stride, int64_t count,
                                     int64_t width) {
  for (int64_t row = 0; row < count; row += 2, to += 2 * width, from += 2 * stride) {
    for (int64_t d = 0; d < width; d += 2 * kLanes) {
      const auto mask = static_cast<__mmask32>(width - d >= 32 ? ~0U : (1U << (width - d)) - 1U);
      const __m512i even = _mm512_maskz_loadu_epi16(mask, from + d);
      const __m512i odd = row + 1 < count ? _mm512_maskz_loadu_epi16(mask, from + stride + d)
                                          : _mm512_setzero_si512();
      __m512i low, high;
      interleave(even, odd, low, high);
      _mm512_mask_storeu_epi32(to + 2 * d, first_lanes(width - d), low);
      if (width - d > kLanes) {
        _mm512_mask_storeu_epi32(to + 2 * (d + kLanes), first_lanes(width - d - kLanes), high);
      }
    }
  }
}
/// Single values are their own pairs.
inline void pair_rows(float*, const float*, int64_t, int64_t, int64_t) {}

}  // namespace sd::simd

SD_SIMD_END
#endif
