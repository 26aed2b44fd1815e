// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/int8_kernels.h>

// Convolutions of stride 1 in eight bits: the image lies with four channels side by side, so that 16
// pixels of them are one vector wherever it begins, and the result is written as LibTorch lays
// images out. Nothing is unrolled into columns.

namespace lightlora::detail::int8 {

/// Output channels and vectors of pixels of one product; the weights' tiles are kChannels wide.
constexpr int64_t kChannels = 8, kVectors = 3;
/// The widest kernels that the memory behind the last pixel allows.
constexpr int64_t kWidestKernel = 32;

/// An image (channels, height, width) in eight bits: [channels / 4][rows][pitch][4], one scale a
/// row. A row's padding on the right is that of the next one on the left.
struct ImageShape {
  int64_t channels, height, width;
  int64_t pad_y, pad_x;
  int64_t pitch() const { return width + pad_x; }
  int64_t rows() const { return height + 2 * pad_y; }
  // Vectors of pixels read past the last one.
  int64_t plane() const { return rows() * pitch() + pad_x + kVectors * 16; }
  int64_t groups() const { return round_up(channels, kChannels) / 4; }
};

/// An image brought into eight bits.
template <typename T>
struct QuantiseImage {
  const T* x;
  ImageShape shape;
  const float* factors;  ///< (channels), or null
  uint8_t* to;           ///< groups() * plane() * 4, filled with kZero
  float* scales;         ///< plane(), of each pixel, filled with 0
};

/// A convolution of stride 1.
template <typename T>
struct ImageProduct {
  const uint8_t* x;
  const float* pixel_scales;
  ImageShape shape;
  int64_t kernel_y, kernel_x;
  const int8_t* tiles;     ///< (outputs / 8, kernel_y, kernel_x, channels / 4, 8, 4)
  const int32_t* offsets;  ///< (kernel_y, outputs)
  const float* scales;     ///< of each output
  const float* bias;
  T* y;  ///< (outputs, out_height, out_width)
  int64_t outputs, out_height, out_width;
  int64_t padded_outputs() const { return round_up(outputs, kChannels); }
};

#if LIGHTLORA_INT8_KERNELS

LIGHTLORA_INT8_QUIET_BEGIN

// The largest of a row of an image, times its factors; `finite` says whether all are.
template <typename T>
LIGHTLORA_INT8_INLINE float largest_of(const QuantiseImage<T>& call, int64_t y, bool* finite) {
  const ImageShape& s = call.shape;
  __m512 largest = _mm512_setzero_ps(), rest = _mm512_setzero_ps();
  for (int64_t c = 0; c < s.channels; ++c) {
    const T* x = call.x + (c * s.height + y) * s.width;
    const __m512 factor = _mm512_set1_ps(call.factors ? call.factors[c] : 1.0F);
    for (int64_t i = 0; i < s.width; i += 16) {
      const __m512 v = _mm512_mul_ps(load(x + i, first(s.width - i)), factor);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
      rest = _mm512_add_ps(rest, _mm512_sub_ps(v, v));
    }
  }
  *finite = is_finite(rest);
  return _mm512_reduce_max_ps(largest);
}

/// Rows [begin, end) of an image.
template <typename T>
LIGHTLORA_INT8_TARGET __attribute__((noinline)) void run(const QuantiseImage<T>& call,
                                                         int64_t begin, int64_t end) {
  const ImageShape& s = call.shape;
  for (int64_t y = begin; y < end; ++y) {
    bool finite;
    float inverse;
    const float largest = largest_of(call, y, &finite);
    const int64_t start = (y + s.pad_y) * s.pitch();
    std::fill_n(call.scales + start, s.pitch(), scale_of(largest, finite, &inverse));
    for (int64_t g = 0; g < s.groups(); ++g) {
      uint8_t* to = call.to + (g * s.plane() + start + s.pad_x) * 4;
      for (int64_t i = 0; i < s.width; i += 16) {
        const __mmask16 mask = first(s.width - i);
        __m512i four = _mm512_setzero_si512();
        for (int64_t c = 4 * g + 3; c >= 4 * g; --c) {
          __m512i q = _mm512_set1_epi32(kZero);
          if (c < s.channels) {
            const __m512 x = load(call.x + (c * s.height + y) * s.width + i, mask);
            const __m512 factor = _mm512_set1_ps(call.factors ? call.factors[c] : 1.0F);
            q = quantised(_mm512_mul_ps(x, factor), _mm512_set1_ps(inverse));
          }
          four = _mm512_or_si512(_mm512_slli_epi32(four, 8), q);
        }
        _mm512_mask_storeu_epi32(to + i * 4, mask, four);
      }
    }
  }
}

// What eight output channels sum up over one row of their kernels, for some vectors of pixels.
// `x` is at the first of them.
template <int Vectors>
LIGHTLORA_INT8_INLINE void add_up(const uint8_t* x, const ImageShape& shape, int64_t kernel_x,
                                  const int8_t* w, int32_t (*to)[Vectors * 16]) {
  const int64_t groups = shape.groups(), plane = shape.plane() * 4;
  __m512i sums[kChannels][Vectors];
  LIGHTLORA_THIN_UNROLL
  for (int o = 0; o < kChannels; ++o) {
    LIGHTLORA_THIN_UNROLL
    for (int v = 0; v < Vectors; ++v) sums[o][v] = _mm512_setzero_si512();
  }
  for (int64_t kx = 0; kx < kernel_x; ++kx) {
    const uint8_t* here = x + 4 * kx;
    for (int64_t g = 0; g < groups; ++g, here += plane, w += 4 * kChannels) {
      __m512i in[Vectors];
      LIGHTLORA_THIN_UNROLL
      for (int v = 0; v < Vectors; ++v) in[v] = _mm512_loadu_si512(here + 64 * v);
      LIGHTLORA_THIN_UNROLL
      for (int o = 0; o < kChannels; ++o) {
        int32_t four;
        std::memcpy(&four, w + 4 * o, sizeof(four));
        const __m512i factor = _mm512_set1_epi32(four);
        LIGHTLORA_THIN_UNROLL
        for (int v = 0; v < Vectors; ++v) {
          sums[o][v] = _mm512_dpbusd_epi32(sums[o][v], in[v], factor);
        }
      }
    }
  }
  LIGHTLORA_THIN_UNROLL
  for (int o = 0; o < kChannels; ++o) {
    LIGHTLORA_THIN_UNROLL
    for (int v = 0; v < Vectors; ++v) _mm512_storeu_si512(to[o] + 16 * v, sums[o][v]);
  }
}

// Which of 16 pixels from this one on are of the result, and not the padding between two rows.
template <typename T>
LIGHTLORA_INT8_INLINE __mmask16 valid_pixels(const ImageProduct<T>& call, int64_t y, int64_t x) {
  uint32_t valid = 0;
  for (int i = 0; i < 16; ++i) {
    if (x < call.out_width && y < call.out_height) valid |= 1U << i;
    if (++x == call.shape.pitch()) {
      x = 0;
      ++y;
    }
  }
  return static_cast<__mmask16>(valid);
}

template <int Vectors, typename T>
LIGHTLORA_INT8_INLINE void write(const ImageProduct<T>& call, int64_t pixel, int64_t channel,
                                 const float (*results)[Vectors * 16]) {
  const int64_t pitch = call.shape.pitch(), area = call.out_height * call.out_width;
  const int64_t count = std::min<int64_t>(kChannels, call.outputs - channel);
  for (int v = 0; v < Vectors; ++v) {
    const int64_t y = (pixel + 16 * v) / pitch, x = (pixel + 16 * v) % pitch;
    const __mmask16 valid = valid_pixels(call, y, x);
    if (!valid) continue;
    T* to = call.y + channel * area + y * call.out_width + std::min(x, call.out_width);
    const __mmask16 mask = first(__builtin_popcount(valid));
    for (int64_t o = 0; o < count; ++o) {
      const __m512 value = _mm512_fmadd_ps(_mm512_loadu_ps(results[o] + 16 * v),
                                           _mm512_set1_ps(call.scales[channel + o]),
                                           _mm512_set1_ps(call.bias[channel + o]));
      store(to + o * area, mask, _mm512_maskz_compress_ps(valid, value));
    }
  }
}

template <int Vectors, typename T>
LIGHTLORA_INT8_INLINE void block(const ImageProduct<T>& call, int64_t pixel, int64_t channel) {
  const ImageShape& s = call.shape;
  const int64_t row = call.kernel_x * s.groups() * 4 * kChannels;
  alignas(64) float results[kChannels][Vectors * 16];
  alignas(64) int32_t sums[kChannels][Vectors * 16];
  for (int64_t ky = 0; ky < call.kernel_y; ++ky) {
    const int64_t here = pixel + ky * s.pitch();
    add_up<Vectors>(call.x + here * 4, s, call.kernel_x,
                    call.tiles + (channel / kChannels * call.kernel_y + ky) * row, sums);
    const int32_t* offsets = call.offsets + ky * call.padded_outputs() + channel;
    for (int64_t i = 0; i < Vectors * 16; i += 16) {
      const __m512 scale = _mm512_loadu_ps(call.pixel_scales + here + i);
      for (int o = 0; o < kChannels; ++o) {
        const __m512i sum =
            _mm512_sub_epi32(_mm512_loadu_si512(sums[o] + i), _mm512_set1_epi32(offsets[o]));
        const __m512 before = ky == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(results[o] + i);
        _mm512_storeu_ps(results[o] + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, before));
      }
    }
  }
  write<Vectors>(call, pixel, channel, results);
}

/// Blocks [begin, end) of pixels, all channels.
template <typename T>
LIGHTLORA_INT8_TARGET __attribute__((noinline)) void run(const ImageProduct<T>& call, int64_t begin,
                                                         int64_t end) {
  const int64_t pixels = call.out_height * call.shape.pitch();
  for (int64_t b = begin; b < end; ++b) {
    const int64_t pixel = b * 16 * kVectors;
    const int64_t vectors = std::min<int64_t>(kVectors, (pixels - pixel + 15) / 16);
    for (int64_t channel = 0; channel < call.outputs; channel += kChannels) {
      if (vectors == 3)
        block<3>(call, pixel, channel);
      else if (vectors == 2)
        block<2>(call, pixel, channel);
      else
        block<1>(call, pixel, channel);
    }
  }
}

/// The kernels (outputs / 8, ky, kx, channels / 4, 8, 4) of a convolution turned about and with inputs
/// and outputs exchanged, as the gradient of the input wants them: eight channels from 8 `to_block`
/// on. `offsets` (ky, channels) gets 128 times the sums. Both counts are multiples of 8.
LIGHTLORA_INT8_TARGET inline void transpose_kernels(const int8_t* from, const ImageShape& shape,
                                                    int64_t outputs, int64_t kernel_y,
                                                    int64_t kernel_x, int64_t to_block, int8_t* to,
                                                    int32_t* offsets) {
  const int64_t taps = kernel_y * kernel_x, channels = shape.groups() * 4;
  const __m512i all = _mm512_set1_epi8(static_cast<char>(kZero));
  for (int64_t ky = 0; ky < kernel_y; ++ky) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t kx = 0; kx < kernel_x; ++kx) {
      const int64_t tap = ky * kernel_x + kx, turned = taps - 1 - tap;
      for (int64_t o = 0; o < outputs / kChannels; ++o) {
        const int8_t* tile = from + (o * taps + turned) * channels * 8 + to_block * 64;
        const __m512i lanes = transposed_lanes(_mm512_loadu_si512(tile));
        const __m512i turned_tile = _mm512_shuffle_i32x4(lanes, lanes, 0xD8);
        _mm512_storeu_si512(to + (to_block * taps + tap) * outputs * 8 + o * 64, turned_tile);
        sum = _mm512_dpbusd_epi32(sum, all, turned_tile);
      }
    }
    const __m256i both =
        _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(offsets + ky * channels + to_block * 8), both);
  }
}

LIGHTLORA_INT8_QUIET_END

#endif

}  // namespace lightlora::detail::int8
