// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/attention_kernels.h"
#include "kernels/tiles.h"

#if SD_SIMD
SD_SIMD_BEGIN

namespace sd::simd {

namespace {

// Keys whose weights are kept until they multiply their values: both fit in the first-level cache.
constexpr int64_t kKeys = 96;
// A running maximum may lag behind by this power of two before the sums are rescaled: by little in
// half precision, where a weight of one is exact and those near it are not.
template <typename T>
constexpr float kLag = kPair<T> == 2 ? 0.5F : 8.0F;

// One head of one batch entry, for a block of up to V * kLanes queries: they are the lanes, so that
// maxima and sums need no step across lanes.
template <typename T, int V>
struct QueryBlock {
  static constexpr int kWide = V * kLanes;

  explicit QueryBlock(int64_t width)
      : width(width), query(width * kWide / kPair<T>), sums(width * kWide) {}

  int64_t width;
  float scale = 0;         // of the scores, times log2(e)
  int64_t first = -1;      // the first query's place, if the keys behind a query's own do not count
  const T* key = nullptr;  // rows
  int64_t key_stride = 0;
  const T* value = nullptr;  // in pairs of rows
  int64_t value_step = 0;
  std::vector<float> query;  // [width / kPair][kWide]
  std::vector<float> sums;   // [width][kWide]
  int64_t pending = 0;       // the first key whose weights have not yet been used
  alignas(64) float maximum[kWide];
  // Of the weights, and of the weights as rounded; of the keys that are not pending any more.
  alignas(64) float totals[2][kWide];
  alignas(64) float new_totals[2][kWide];  // of the others
  alignas(64) float weights[kKeys / kPair<T> * kWide];
};

template <typename T, int V>
SD_SIMD_TARGET void use_weights(QueryBlock<T, V>& block, int64_t first, int64_t end) {
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < V * kLanes; ++k) {
      block.totals[i][k] += block.new_totals[i][k];
      block.new_totals[i][k] = 0;
    }
  }
  const int64_t from = block.pending / kPair<T>, to = (end + kPair<T> - 1) / kPair<T>;
  if (to > from) {
    add_matrix<T, V>(block.sums.data(), block.value + (first / kPair<T> + from) * block.value_step,
                     block.value_step, block.width, block.weights + from * V * kLanes, to - from);
  }
  block.pending = end;
}

// The maxima of the queries grow to `highest`, where they lag too far behind.
template <typename T, int V>
SD_SIMD_TARGET __attribute__((noinline)) void raise(QueryBlock<T, V>& block, const __m512* highest,
                                                    int64_t first, int64_t end) {
  use_weights(block, first, end);
  const __m512 scale = _mm512_set1_ps(block.scale);
  for (int v = 0; v < V; ++v) {
    const __m512 old = _mm512_load_ps(block.maximum + v * kLanes);
    const __m512 now = _mm512_max_ps(old, highest[v]);
    const __m512 factor = exp2_of<float>(_mm512_mul_ps(_mm512_sub_ps(old, now), scale));
    _mm512_store_ps(block.maximum + v * kLanes, now);
    for (auto& totals : block.totals) {
      float* total = totals + v * kLanes;
      _mm512_store_ps(total, _mm512_mul_ps(_mm512_load_ps(total), factor));
    }
    for (int64_t d = 0; d < block.width; ++d) {
      float* sum = block.sums.data() + (d * V + v) * kLanes;
      _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), factor));
    }
  }
}

// Whether a score is above its query's maximum by more than the lag.
template <int R, int V>
SD_SIMD_INLINE bool outgrown(const Sums<R, V>& scores, const float* maximum, float lag,
                             __m512 (&highest)[V]) {
  __mmask16 above = 0;
  SD_SIMD_UNROLL
  for (int v = 0; v < V; ++v) {
    highest[v] = scores[0][v];
    SD_SIMD_UNROLL
    for (int r = 1; r < R; ++r) highest[v] = _mm512_max_ps(highest[v], scores[r][v]);
    const __m512 limit = _mm512_add_ps(_mm512_load_ps(maximum + v * kLanes), _mm512_set1_ps(lag));
    above |= _mm512_cmp_ps_mask(highest[v], limit, _CMP_GT_OQ);
  }
  return above != 0;
}

// Scores of R keys from `key` become -inf for the queries before them.
template <int R, int V>
SD_SIMD_INLINE void hide(Sums<R, V>& scores, int64_t key, int64_t query) {
  SD_SIMD_UNROLL
  for (int r = 0; r < R; ++r) {
    SD_SIMD_UNROLL
    for (int v = 0; v < V; ++v) {
      const __mmask16 hidden = first_lanes(key + r - query - v * kLanes);
      scores[r][v] = _mm512_mask_mov_ps(scores[r][v], hidden, _mm512_set1_ps(-HUGE_VALF));
    }
  }
}

// R keys from `j` of the keys that begin with `first`: their scores, and from these the weights.
template <typename T, int V, int R>
SD_SIMD_TARGET __attribute__((noinline)) void weigh(QueryBlock<T, V>& block, int64_t first,
                                                    int64_t j) {
  Sums<R, V> scores;
  const T* key = block.key + (first + j) * block.key_stride;
  product<T, R, V>(scores, {key, block.key_stride, kPair<T>}, block.query.data(),
                   block.width / kPair<T>);
  if (block.first >= 0) hide<R, V>(scores, first + j, block.first);
  {
    __m512 highest[V];
    if (__builtin_expect(outgrown<R, V>(scores, block.maximum, kLag<T> / block.scale, highest),
                         0)) {
      raise(block, highest, first, j);
    }
  }
  const __m512 scale = _mm512_set1_ps(block.scale);
  float* to = block.weights + j / kPair<T> * V * kLanes;
  SD_SIMD_UNROLL
  for (int v = 0; v < V; ++v) {
    const __m512 zero = _mm512_mul_ps(_mm512_load_ps(block.maximum + v * kLanes), scale);
    __m512 total = _mm512_load_ps(block.new_totals[0] + v * kLanes);
    SD_SIMD_UNROLL
    for (int r = 0; r < R; ++r) {
      scores[r][v] = exp2_of<T>(_mm512_fmsub_ps(scores[r][v], scale, zero));
      total = _mm512_add_ps(total, scores[r][v]);
    }
    _mm512_store_ps(block.new_totals[0] + v * kLanes, total);
    __m512 rounded = _mm512_load_ps(block.new_totals[1] + v * kLanes);
    SD_SIMD_UNROLL
    for (int r = 0; r < R; r += kPair<T>) {
      float* place = to + (r / kPair<T> * V + v) * kLanes;
      if constexpr (kPair<T> == 2) {
        const __m512i pair = pair_of(scores[r][v], r + 1 < R ? scores[r + 1][v] : __m512{});
        store_words(place, pair);
        rounded = multiply_add<T>(rounded, pair, _mm512_set1_epi32(0x3F803F80));  // times 1, 1
      } else {
        _mm512_storeu_ps(place, scores[r][v]);
      }
    }
    if (kPair<T> == 2) _mm512_store_ps(block.new_totals[1] + v * kLanes, rounded);
  }
}

template <typename T, int V>
SD_SIMD_TARGET void weigh_keys(QueryBlock<T, V>& block, int64_t first, int64_t count) {
  using Tile = void (*)(QueryBlock<T, V>&, int64_t, int64_t);
  static constexpr Tile kTiles[kRows] = {weigh<T, V, 1>, weigh<T, V, 2>, weigh<T, V, 3>,
                                         weigh<T, V, 4>, weigh<T, V, 5>, weigh<T, V, 6>};
  block.pending = 0;
  for (int64_t j = 0; j < count; j += kRows) {
    kTiles[std::min<int64_t>(kRows, count - j) - 1](block, first, j);
  }
  use_weights(block, first, count);
}

template <typename T, int V>
SD_SIMD_TARGET void attend(const AttentionForward<T>& call, QueryBlock<T, V>& block, const T* query,
                           T* out, float* exponent, float* inverse, int64_t count) {
  rows_to_lanes(V, block.query.data(), query, call.query.stride, count, block.width / kPair<T>);
  std::fill(block.sums.begin(), block.sums.end(), 0.0F);
  std::fill_n(block.maximum, V * kLanes, -FLT_MAX);
  for (auto* totals : {&block.totals, &block.new_totals}) {
    for (auto& each : *totals) std::fill_n(each, V * kLanes, 0.0F);
  }
  const int64_t last = block.first + count;  // no query has more keys
  const int64_t keys = call.causal ? std::min(call.sizes.keys, last) : call.sizes.keys;
  for (int64_t first = 0; first < keys; first += kKeys) {
    weigh_keys(block, first, std::min(kKeys, keys - first));
  }
  for (auto& totals : block.totals) {
    for (float& total : totals) total = 1.0F / total;
  }
  for (int64_t i = 0; exponent && i < count; ++i) {
    exponent[i] = block.maximum[i] * block.scale;
    inverse[i] = block.totals[0][i];
  }
  // By the sum of what was added up: a rounding of one weight that counts is then none.
  lanes_to_rows(V, out, call.out.stride, block.sums.data(), count, block.width,
                block.totals[kPair<T> - 1]);
}

// Values in pairs, (batch, heads, pairs, 2 width); fp32 has them where they lie.
std::vector<Bf16> paired_values(const AttentionForward<Bf16>& call) {
  const auto& [batch, heads, queries, keys, width] = call.sizes;
  const int64_t size = (keys + 1) / 2 * 2 * width;
  std::vector<Bf16> values(batch * heads * size);
  in_threads(batch * heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Bf16* from = call.value.data + i / call.sizes.heads * call.value.batch_stride +
                         i % call.sizes.heads * call.sizes.width;
      pair_rows(values.data() + i * size, from, call.value.stride, call.sizes.keys,
                call.sizes.width);
    }
  });
  return values;
}
std::vector<float> paired_values(const AttentionForward<float>&) { return {}; }

template <typename T, int V>
void run(const AttentionForward<T>& call) {
  const AttentionSizes sizes = call.sizes;
  const std::vector<T> pairs = paired_values(call);
  const int64_t pairs_size = (sizes.keys + 1) / 2 * 2 * sizes.width;
  const int64_t blocks = (sizes.queries + V * kLanes - 1) / (V * kLanes);
  in_threads(sizes.batch * sizes.heads * blocks, [&](int64_t begin, int64_t end) {
    QueryBlock<T, V> block(sizes.width);
    block.scale = call.scale * kLog2OfE;
    block.key_stride = call.key.stride;
    block.value_step = kPair<T> == 2 ? 2 * sizes.width : call.value.stride;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / blocks, b = pair / sizes.heads;
      const int64_t channel = pair % sizes.heads * sizes.width, row = i % blocks * V * kLanes;
      if (call.causal) block.first = row;
      block.key = call.key.data + b * call.key.batch_stride + channel;
      block.value = kPair<T> == 2 ? pairs.data() + pair * pairs_size
                                  : call.value.data + b * call.value.batch_stride + channel;
      attend<T, V>(
          call, block,
          call.query.data + b * call.query.batch_stride + row * call.query.stride + channel,
          call.out.data + b * call.out.batch_stride + row * call.out.stride + channel,
          call.exponent ? call.exponent + pair * sizes.queries + row : nullptr,
          call.inverse ? call.inverse + pair * sizes.queries + row : nullptr,
          std::min<int64_t>(V * kLanes, sizes.queries - row));
    }
  });
}

}  // namespace

template <typename T>
void attention_forward(const AttentionForward<T>& call) {
  if (call.sizes.queries <= kLanes) return run<T, 1>(call);
  if (call.sizes.queries <= 2 * kLanes) return run<T, 2>(call);
  run<T, kVectors>(call);
}

template void attention_forward(const AttentionForward<float>&);
template void attention_forward(const AttentionForward<Bf16>&);

}  // namespace sd::simd

SD_SIMD_END
#endif
