// SPDX-License-Identifier: Apache-2.0
#include "kernels/winograd_kernels.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention_kernels.h"
#include "kernels/tiles.h"

#if SD_SIMD
SD_SIMD_BEGIN

namespace sd::simd {

namespace {

constexpr int kPoints = 16;         // of a tile of 4x4 pixels, which makes 2x2 results
constexpr int64_t kItemTiles = 48;  // that one item of work makes the results of
constexpr int64_t kDepth = 320;     // words of the inputs' channels that are multiplied at once
constexpr int64_t kInputBytes =
    6 << 20;                            // of transformed inputs, which the third-level cache holds
constexpr int64_t kBetweenPoints = 64;  // bytes, so that they do not fall on one place of a cache

// The maps of a call as tiles, and the transformed inputs of a block of them, [points][tiles][in].
template <typename T>
struct TiledMap {
  explicit TiledMap(const WinogradCall<T>& call)
      : call(call),
        across((call.sizes.width + 1) / 2),
        down((call.sizes.height + 1) / 2),
        tiles(call.sizes.batch * across * down),
        zeros(call.sizes.in) {
    const int64_t bytes = kPoints * call.sizes.in * static_cast<int64_t>(sizeof(T));
    const int64_t items = std::max<int64_t>(1, kInputBytes / bytes / kItemTiles);
    block = std::min(tiles, items * kItemTiles);
    point = block * call.sizes.in + kBetweenPoints / static_cast<int64_t>(sizeof(T));
    inputs.reset(new T[kPoints * point]);
  }

  const WinogradCall<T>& call;
  int64_t across, down, tiles;
  int64_t block;  // tiles in a block
  int64_t point;  // elements from point to point of the inputs
  std::vector<T> zeros;
  std::unique_ptr<T[]> inputs;
};

struct Place {
  int64_t picture, row, column;  // of a tile's first result
};

template <typename T>
Place place_of(const TiledMap<T>& map, int64_t tile) {
  const int64_t line = tile / map.across;
  return {line / map.down, line % map.down * 2, tile % map.across * 2};
}

SD_SIMD_INLINE __m512 load_channels(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
SD_SIMD_INLINE __m512 load_channels(const Bf16* from, __mmask16 mask) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

SD_SIMD_INLINE void mix(__m512& a, __m512& b, __m512& c, __m512& d) {
  const __m512 sum = _mm512_add_ps(b, c), difference = _mm512_sub_ps(c, b);
  a = _mm512_sub_ps(a, c), d = _mm512_sub_ps(b, d);
  b = sum, c = difference;
}

// B^T d B of 16 channels.
SD_SIMD_INLINE void transform_input(__m512 (&d)[kPoints]) {
  SD_SIMD_UNROLL
  for (int i = 0; i < 4; ++i) mix(d[i], d[4 + i], d[8 + i], d[12 + i]);
  SD_SIMD_UNROLL
  for (int i = 0; i < kPoints; i += 4) mix(d[i], d[i + 1], d[i + 2], d[i + 3]);
}

template <typename T>
SD_SIMD_TARGET __attribute__((noinline)) void transform_tile(const TiledMap<T>& map, int64_t tile,
                                                             T* to) {
  const auto& sizes = map.call.sizes;
  const Place place = place_of(map, tile);
  const T* pixels[kPoints];
  for (int i = 0; i < kPoints; ++i) {
    const int64_t row = place.row + i / 4 - 1, column = place.column + i % 4 - 1;
    const bool inside = row >= 0 && row < sizes.height && column >= 0 && column < sizes.width;
    pixels[i] =
        inside
            ? map.call.x + ((place.picture * sizes.height + row) * sizes.width + column) * sizes.in
            : map.zeros.data();
  }
  for (int64_t c = 0; c < sizes.in; c += kLanes) {
    const __mmask16 mask = first_lanes(sizes.in - c);
    __m512 d[kPoints];
    SD_SIMD_UNROLL
    for (int i = 0; i < kPoints; ++i) d[i] = load_channels(pixels[i] + c, mask);
    transform_input(d);
    SD_SIMD_UNROLL
    for (int i = 0; i < kPoints; ++i) store_row(to + i * map.point + c, mask, d[i]);
  }
}

// sums[tiles][V] of one point: the products of the tiles' inputs with a panel's weights.
template <typename T, int V>
SD_SIMD_TARGET __attribute__((noinline)) void multiply(float* sums, const T* inputs,
                                                       const float* weights, int64_t in,
                                                       int64_t tiles) {
  const int64_t words = in / kPair<T>;
  std::fill_n(sums, tiles * V * kLanes, 0.0F);
  for (int64_t k = 0; k < words; k += kDepth) {
    const int64_t steps = std::min(kDepth, words - k);
    const float* b = weights + k * V * kLanes;
    int64_t t = 0;
    for (; t + kRows <= tiles; t += kRows) {
      const Broadcasts<T> a{inputs + t * in + k * kPair<T>, in, kPair<T>};
      add_rows<T, kRows, V>(sums + t * V * kLanes, a, b, steps);
    }
    for (; t + 2 <= tiles; t += 2) {
      const Broadcasts<T> a{inputs + t * in + k * kPair<T>, in, kPair<T>};
      add_rows<T, 2, V>(sums + t * V * kLanes, a, b, steps);
    }
    if (t < tiles) {
      const Broadcasts<T> a{inputs + t * in + k * kPair<T>, in, kPair<T>};
      add_rows<T, 1, V>(sums + t * V * kLanes, a, b, steps);
    }
  }
}

// A^T m A of 16 outputs, [row][column] of the results.
SD_SIMD_INLINE void transform_output(const float* m, int64_t point, __m512 (&y)[4]) {
  __m512 rows[2][4];
  SD_SIMD_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_loadu_ps(m + i * point), b = _mm512_loadu_ps(m + (4 + i) * point);
    const __m512 c = _mm512_loadu_ps(m + (8 + i) * point);
    const __m512 d = _mm512_loadu_ps(m + (12 + i) * point);
    rows[0][i] = _mm512_add_ps(a, _mm512_add_ps(b, c));
    rows[1][i] = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
  }
  SD_SIMD_UNROLL
  for (int r = 0; r < 2; ++r) {
    const auto& [a, b, c, d] = rows[r];
    y[2 * r] = _mm512_add_ps(a, _mm512_add_ps(b, c));
    y[2 * r + 1] = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
  }
}

// The results of one tile, of the outputs that begin with `first`.
template <typename T, int V>
SD_SIMD_TARGET void write_tile(const TiledMap<T>& map, int64_t tile, int64_t first,
                               const float* sums) {
  const auto& sizes = map.call.sizes;
  const Place place = place_of(map, tile);
  for (int v = 0; v < V; ++v) {
    const int64_t out = first + v * kLanes;
    const __mmask16 mask = first_lanes(sizes.out - out);
    const __m512 bias =
        map.call.bias ? _mm512_maskz_loadu_ps(mask, map.call.bias + out) : _mm512_setzero_ps();
    __m512 y[4];
    transform_output(sums + v * kLanes, kItemTiles * V * kLanes, y);
    for (int i = 0; i < 4; ++i) {
      const int64_t row = place.row + i / 2, column = place.column + i % 2;
      if (row >= sizes.height || column >= sizes.width) continue;
      const int64_t pixel = (place.picture * sizes.height + row) * sizes.width + column;
      store_row(map.call.y + pixel * sizes.out + out, mask, _mm512_add_ps(y[i], bias));
    }
  }
}

// A panel of outputs of `count` tiles from `tile` of the block that begins with `begin`.
template <typename T, int V>
void make_panel(const TiledMap<T>& map, float* sums, int64_t panel, int64_t begin, int64_t tile,
                int64_t count) {
  const int64_t in = map.call.sizes.in, words = in / kPair<T>;
  const auto* weights = reinterpret_cast<const float*>(map.call.weights);
  weights += panel * kPanel * kPoints * words;
  for (int p = 0; p < kPoints; ++p) {
    multiply<T, V>(sums + p * kItemTiles * V * kLanes, map.inputs.get() + p * map.point + tile * in,
                   weights + p * words * V * kLanes, in, count);
  }
  for (int64_t i = 0; i < count; ++i) {
    write_tile<T, V>(map, begin + tile + i, panel * kPanel, sums + i * V * kLanes);
  }
}

template <typename T>
void make_item(const TiledMap<T>& map, float* sums, int64_t panel, int64_t begin, int64_t tile,
               int64_t count) {
  const int64_t left = map.call.sizes.out - panel * kPanel;
  if (left <= kLanes) return make_panel<T, 1>(map, sums, panel, begin, tile, count);
  if (left <= 2 * kLanes) return make_panel<T, 2>(map, sums, panel, begin, tile, count);
  if (left <= 3 * kLanes) return make_panel<T, 3>(map, sums, panel, begin, tile, count);
  make_panel<T, 4>(map, sums, panel, begin, tile, count);
}

}  // namespace

template <typename T>
void winograd(const WinogradCall<T>& call) {
  const TiledMap<T> map(call);
  const int64_t panels = (call.sizes.out + kPanel - 1) / kPanel;
  for (int64_t begin = 0; begin < map.tiles; begin += map.block) {
    const int64_t tiles = std::min(map.block, map.tiles - begin);
    in_threads(tiles, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        transform_tile(map, begin + i, map.inputs.get() + i * call.sizes.in);
      }
    });
    const int64_t parts = (tiles + kItemTiles - 1) / kItemTiles;
    in_threads(panels * parts, [&](int64_t first, int64_t last) {
      const std::unique_ptr<float[]> sums(new float[kPoints * kItemTiles * kPanel]);
      for (int64_t i = first; i < last; ++i) {
        const int64_t tile = i % parts * kItemTiles;
        make_item(map, sums.get(), i / parts, begin, tile, std::min(kItemTiles, tiles - tile));
      }
    });
  }
}

template void winograd(const WinogradCall<float>&);
template void winograd(const WinogradCall<Bf16>&);

}  // namespace sd::simd

SD_SIMD_END
#endif
