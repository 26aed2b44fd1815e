// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention_kernels.h"
#include "kernels/tiles.h"

// The inner part of attention_backward.cpp: what a block of queries and a block of keys add to each
// other's gradients. The keys are the lanes; only the gradient of the scores is transposed for the
// queries' own.
#if SD_SIMD
SD_SIMD_BEGIN

namespace sd::simd {

/// Queries whose weights are kept until they are used.
constexpr int64_t kQueries = kVectors * kLanes;

/// One head of one batch entry. The pairs are those of neighbouring rows, of pair p at p * step.
template <typename T>
struct Head {
  const T *query, *key, *value, *grad_out;  // rows
  const T *query_pairs, *grad_out_pairs;
  int64_t query_step, grad_out_step;
  const float *exponent, *inverse, *mean;
};

/// A block of keys and the gradients that have come together for it.
template <typename T>
struct KeyBlock {
  int64_t first = 0, count = 0;
  int vectors = 0;           // of keys, the last of which may have lanes left
  std::vector<float> lanes;  // keys and values, [width / kPair][vectors] each
  std::vector<T> pairs;      // keys
  std::vector<float> grads;  // of the keys and the values, [width][vectors] each
};

/// What a thread works with.
template <typename T>
struct Bench {
  Bench(const AttentionBackward<T>& call, int64_t blocks)
      : call(call), width(call.sizes.width), group(blocks) {}

  const AttentionBackward<T>& call;
  const int64_t width;
  std::vector<KeyBlock<T>> group;  // that the queries pass by at once
  std::vector<float> grad_query;   // of a part of them, [blocks][width][vectors]
  alignas(64) float weights[kQueries / kPair<T> * kQueries];  // [queries / kPair][vectors]
  alignas(64) float scores[kQueries / kPair<T> * kQueries];   // gradients, the same
  alignas(64) float flipped[kQueries / kPair<T> * kQueries];  // these with queries as lanes

  const float* values_of(const KeyBlock<T>& keys) const {
    return keys.lanes.data() + width / kPair<T> * keys.vectors * kLanes;
  }
  float* value_grads_of(KeyBlock<T>& keys) const {
    return keys.grads.data() + width * keys.vectors * kLanes;
  }
};

template <typename T, int R, int V>
SD_SIMD_INLINE void store_pairs(float* to, const Sums<R, V>& rows) {
  SD_SIMD_UNROLL
  for (int r = 0; r < R; r += kPair<T>) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) {
      float* place = to + (r / kPair<T> * V + v) * kLanes;
      if constexpr (kPair<T> == 2) {
        store_words(place, pair_of(rows[r][v], r + 1 < R ? rows[r + 1][v] : __m512{}));
      } else {
        _mm512_storeu_ps(place, rows[r][v]);
      }
    }
  }
}

/// Weights stay of the first `count` keys for the first query, of one more for each after it.
template <int R, int V>
SD_SIMD_INLINE void keep_own(Sums<R, V>& weights, int64_t count) {
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) {
      weights[r][v] = _mm512_maskz_mov_ps(first_lanes(count + r - v * kLanes), weights[r][v]);
    }
  }
}

/// R queries from `row`, place `j` of their block: their weights and the gradients of their scores.
template <typename T, int V, int R>
SD_SIMD_TARGET __attribute__((noinline)) void weigh_again(Bench<T>& bench, const KeyBlock<T>& keys,
                                                          const Head<T>& head, int64_t row,
                                                          int64_t j) {
  const int64_t words = bench.width / kPair<T>, place = j / kPair<T> * V * kLanes;
  const auto& call = bench.call;
  Sums<R, V> weights;
  product<T, R, V>(weights, {head.query + row * call.query.stride, call.query.stride, kPair<T>},
                   keys.lanes.data(), words);
  const __m512 scale = _mm512_set1_ps(call.scale * kLog2OfE);
  SD_SIMD_UNROLL
  for (int v = 0; v < V; ++v) {
    const __mmask16 mask = first_lanes(keys.count - v * kLanes);
    SD_SIMD_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 exponent = _mm512_set1_ps(head.exponent[row + r]);
      weights[r][v] = exp2_of<T>(_mm512_fmsub_ps(weights[r][v], scale, exponent));
      weights[r][v] =
          _mm512_maskz_mul_ps(mask, weights[r][v], _mm512_set1_ps(head.inverse[row + r]));
    }
  }
  if (call.causal) keep_own<R, V>(weights, row + 1 - keys.first);
  store_pairs<T, R, V>(bench.weights + place, weights);
  Sums<R, V> grads;
  product<T, R, V>(grads,
                   {head.grad_out + row * call.grad_out.stride, call.grad_out.stride, kPair<T>},
                   bench.values_of(keys), words);
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 mean = _mm512_set1_ps(head.mean[row + r]);
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) {
      grads[r][v] = _mm512_mul_ps(weights[r][v], _mm512_sub_ps(grads[r][v], mean));
    }
  }
  store_pairs<T, R, V>(bench.scores + place, grads);
}

template <typename T, int V>
struct Tiles {
  using Tile = void (*)(Bench<T>&, const KeyBlock<T>&, const Head<T>&, int64_t, int64_t);
  static constexpr Tile kOf[kRows] = {weigh_again<T, V, 1>, weigh_again<T, V, 2>,
                                      weigh_again<T, V, 3>, weigh_again<T, V, 4>,
                                      weigh_again<T, V, 5>, weigh_again<T, V, 6>};
};

template <typename T>
SD_SIMD_TARGET void weigh_queries(Bench<T>& bench, const KeyBlock<T>& keys, const Head<T>& head,
                                  int64_t row, int64_t count) {
  const auto* tiles = keys.vectors == 1   ? Tiles<T, 1>::kOf
                      : keys.vectors == 2 ? Tiles<T, 2>::kOf
                      : keys.vectors == 3 ? Tiles<T, 3>::kOf
                                          : Tiles<T, 4>::kOf;
  for (int64_t j = 0; j < count; j += kRows) {
    tiles[std::min<int64_t>(kRows, count - j) - 1](bench, keys, head, row + j, j);
  }
}

/// Gradients of the scores with `vectors` of queries as lanes, [keys / kPair][vectors].
template <typename T>
SD_SIMD_TARGET __attribute__((noinline)) void flip(Bench<T>& bench, int key_vectors, int vectors) {
  const int groups = (vectors + kPair<T> - 1) / kPair<T>;
  for (int v = 0; v < key_vectors; ++v) {
    for (int g = 0; g < groups; ++g) {
      __m512i words[kLanes];
      SD_SIMD_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        words[i] = load_words(bench.scores + ((g * kLanes + i) * key_vectors + v) * kLanes);
      }
      transpose(words);
      float* to = bench.flipped + (v * kLanes / kPair<T> * vectors + g * kPair<T>)*kLanes;
      SD_SIMD_UNROLL
      for (int i = 0; i < kLanes; i += kPair<T>, to += vectors * kLanes) {
        if constexpr (kPair<T> == 2) {
          __m512i low, high;
          interleave(words[i], words[i + 1], low, high);
          store_words(to, low);
          if (g * kPair<T> + 1 < vectors) store_words(to + kLanes, high);
        } else {
          store_words(to, words[i]);
        }
      }
    }
  }
}

/// The queries from `row`: what they add to the gradients of these keys, and these to theirs, which
/// are [width][vectors].
template <typename T>
SD_SIMD_TARGET void meet(Bench<T>& bench, KeyBlock<T>& keys, const Head<T>& head, int64_t row,
                         int64_t count, float* grad_query) {
  weigh_queries(bench, keys, head, row, count);
  const int vectors = static_cast<int>((count + kLanes - 1) / kLanes);
  const int64_t steps = (count + kPair<T> - 1) / kPair<T>, pair = row / kPair<T>;
  add_matrix(keys.vectors, bench.value_grads_of(keys),
             head.grad_out_pairs + pair * head.grad_out_step, head.grad_out_step, bench.width,
             bench.weights, steps);
  add_matrix(keys.vectors, keys.grads.data(), head.query_pairs + pair * head.query_step,
             head.query_step, bench.width, bench.scores, steps);
  // Lanes beyond the last query.
  const int64_t lanes = keys.vectors * kLanes, end = vectors * kLanes / kPair<T>;
  if (steps < end) std::fill(bench.scores + steps * lanes, bench.scores + end * lanes, 0.0F);
  flip(bench, keys.vectors, vectors);
  const bool paired = kPair<T> == 2;
  const int64_t stride = bench.call.key.stride;
  add_matrix(vectors, grad_query, paired ? keys.pairs.data() : head.key + keys.first * stride,
             paired ? 2 * bench.width : stride, bench.width, bench.flipped,
             (keys.count + kPair<T> - 1) / kPair<T>);
}

}  // namespace sd::simd

SD_SIMD_END
#endif
