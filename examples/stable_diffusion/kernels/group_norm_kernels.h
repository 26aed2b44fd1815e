// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/passes.h"

// The loops of group_norm_silu.cpp. Planar: each channel's pixels lie together, and a group with
// them; a group stays in the second-level cache from the statistics to the result. Rows (channels
// last): each pixel's channels lie together; the statistics are taken from fixed parts of a map.

namespace sd::passes {

/// Shapes of a map (B, C, H, W), and what is done to it.
struct NormSizes {
  int64_t batch, channels, groups, pixels;
  double eps;
  bool activates;

  int64_t width() const { return channels / groups; }
  /// Into how many parts the pixels of a map are cut for its statistics, and where a part begins.
  int64_t parts() const { return std::min<int64_t>(std::max<int64_t>(pixels / 64, 1), 16); }
  int64_t begin_of(int64_t part) const { return pixels * part / parts(); }
};

#if SD_VECTORS

/// z = x * scale + shift and silu(z) of it.
template <typename S>
SD_VECTORS_INLINE void activated(typename S::Vector& y, bool activates) {
  if (!activates) return;
  typename S::Vector s;
  sigmoid<S>(s, y);
  y = y * s;
}

/// The gradient of z from that of silu(z).
template <typename S>
SD_VECTORS_INLINE void through_silu(typename S::Vector& d, const typename S::Vector& z,
                                    bool activates) {
  if (!activates) return;
  typename S::Vector s;
  sigmoid<S>(s, z);
  d = d * (s * (1.0F + z * (1.0F - s)));
}

/// Number, mean and sum of squared deviations of what was added.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(double n, double other_mean, double other_squares) {
    const double all = count + n, delta = other_mean - mean;
    mean += delta * (n / all);
    squares += other_squares + delta * delta * (count * n / all);
    count = all;
  }
};

/// Adds up to a few thousand numbers.
template <typename S, typename T>
SD_VECTORS_INLINE void add_moments(Moments& to, const T* x, int64_t n) {
  using V = typename S::Vector;
  V sum[2] = {}, in;
  int64_t i = 0;
  for (; i + 2 * S::W <= n; i += 2 * S::W) {
    load<S>(in, x + i);
    sum[0] += in;
    load<S>(in, x + i + S::W);
    sum[1] += in;
  }
  for (int64_t rest = i; rest < n; rest += S::W) {
    load_some<S>(in, x + rest, n - rest);
    sum[0] += in;
  }
  const V total = sum[0] + sum[1];
  const float mean = sum_of<S>(total) / static_cast<float>(n);
  V squares[2] = {};
  i = 0;
  for (; i + 2 * S::W <= n; i += 2 * S::W) {
    load<S>(in, x + i);
    in -= mean;
    squares[0] += in * in;
    load<S>(in, x + i + S::W);
    in -= mean;
    squares[1] += in * in;
  }
  for (int64_t rest = i; rest < n; rest += S::W) {
    float ones[S::W];
    std::fill_n(ones, S::W, 1.0F);
    V counts;
    load_some<S>(counts, ones, n - rest);
    load_some<S>(in, x + rest, n - rest);
    in = (in - mean) * counts;
    squares[0] += in * in;
  }
  const V all = squares[0] + squares[1];
  to.add(static_cast<double>(n), mean, sum_of<S>(all));
}

/// Items: (picture, group).
template <typename T>
struct PlanarForward {
  NormSizes sizes;
  const T* x;
  T* y;
  const float *weight, *bias;
  float *mean, *rstd;  // (B, G)

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    constexpr int64_t kChunk = 1024;
    const int64_t width = sizes.width(), numbers = width * sizes.pixels;
    for (int64_t item = begin; item < end; ++item) {
      const T* const from = x + item * numbers;
      Moments moments;
      for (int64_t i = 0; i < numbers; i += kChunk) {
        add_moments<S>(moments, from + i, std::min(kChunk, numbers - i));
      }
      const double deviation = std::sqrt(moments.squares / moments.count + sizes.eps);
      mean[item] = static_cast<float>(moments.mean);
      rstd[item] = static_cast<float>(1.0 / deviation);
      for (int64_t k = 0; k < width; ++k) {
        const int64_t channel = item % sizes.groups * width + k;
        const float scale = rstd[item] * weight[channel];
        const float shift =
            static_cast<float>(bias[channel] - moments.mean * static_cast<double>(scale));
        for (int64_t i = 0; i < sizes.pixels; i += S::W) {
          typename S::Vector z;
          load_some<S>(z, from + k * sizes.pixels + i, sizes.pixels - i);
          z = z * scale + shift;
          activated<S>(z, sizes.activates);
          store_some<S>(y + item * numbers + k * sizes.pixels + i, z, sizes.pixels - i);
        }
      }
    }
  }
};

/// Items: (picture, group). Sums of dz and of dz times the normalised x, for each channel.
template <typename T>
struct PlanarBackward {
  NormSizes sizes;
  const T *x, *dy;
  T* dx;
  const float *weight, *bias, *mean, *rstd;
  double *sums, *products;  // (B, C)

  // Groups of up to so many numbers keep dz from the sums to the result, in the second-level cache.
  static constexpr int64_t kKept = int64_t{1} << 17;

  template <typename S>
  SD_VECTORS_INLINE void add_sums(int64_t at, float scale, float shift, int64_t item, float* kept,
                                  double& sum, double& product) const {
    constexpr int64_t kChunk = 1024;
    const float hat_shift = -mean[item] * rstd[item];
    for (int64_t first = 0; first < sizes.pixels; first += kChunk) {
      const int64_t last = std::min(first + kChunk, sizes.pixels);
      typename S::Vector s = {}, p = {};
      for (int64_t i = first; i < last; i += S::W) {
        typename S::Vector in, d;
        load_some<S>(in, x + at + i, last - i);
        load_some<S>(d, dy + at + i, last - i);
        through_silu<S>(d, in * scale + shift, sizes.activates);
        if (kept) store_some<S>(kept + i, d, last - i);
        s += d;
        p += d * (in * rstd[item] + hat_shift);
      }
      sum += sum_of<S>(s);
      product += sum_of<S>(p);
    }
  }

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t width = sizes.width(), numbers = width * sizes.pixels;
    std::vector<float> dz(static_cast<size_t>(numbers <= kKept ? numbers : 0));
    const auto kept = [&](int64_t k) {
      return dz.empty() ? nullptr : dz.data() + k * sizes.pixels;
    };
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % sizes.groups * width;
      const int64_t picture = item / sizes.groups * sizes.channels;
      double group_sum = 0, group_product = 0;
      for (int64_t k = 0; k < width; ++k) {
        const float scale = rstd[item] * weight[first + k];
        const float shift = bias[first + k] - mean[item] * scale;
        double sum = 0, product = 0;
        add_sums<S>(item * numbers + k * sizes.pixels, scale, shift, item, kept(k), sum, product);
        sums[picture + first + k] = sum;
        products[picture + first + k] = product;
        group_sum += sum * weight[first + k];
        group_product += product * weight[first + k];
      }
      const double count = static_cast<double>(numbers), r = rstd[item];
      const auto slope = static_cast<float>(-r * r * group_product / count);
      const auto offset =
          static_cast<float>(-r * group_sum / count + mean[item] * r * r * group_product / count);
      for (int64_t k = 0; k < width; ++k) {
        const float scale = rstd[item] * weight[first + k];
        const float shift = bias[first + k] - mean[item] * scale;
        const int64_t at = item * numbers + k * sizes.pixels;
        const float* const from = kept(k);
        for (int64_t i = 0; i < sizes.pixels; i += S::W) {
          typename S::Vector in, d;
          load_some<S>(in, x + at + i, sizes.pixels - i);
          if (from) {
            load_some<S>(d, from + i, sizes.pixels - i);
          } else {
            load_some<S>(d, dy + at + i, sizes.pixels - i);
            through_silu<S>(d, in * scale + shift, sizes.activates);
          }
          store_some<S>(dx + at + i, d * scale + (in * slope + offset), sizes.pixels - i);
        }
      }
    }
  }
};

/// Items: (picture, part). Means and sums of squared deviations for each channel.
template <typename T>
struct RowsMoments {
  NormSizes sizes;
  const T* x;
  double *means, *squares;  // (B, parts, C)

  template <typename S>
  SD_VECTORS_INLINE void add(const T* from, int64_t rows, int64_t count, double before,
                             double* mean, double* square) const {
    using V = typename S::Vector;
    V sum = {}, deviations = {}, in;
    for (int64_t row = 0; row < rows; ++row) {
      load_some<S>(in, from + row * sizes.channels, count);
      sum += in;
    }
    const V own = sum * (1.0F / static_cast<float>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      load_some<S>(in, from + row * sizes.channels, count);
      in -= own;
      deviations += in * in;
    }
    float own_lanes[S::W], deviation_lanes[S::W];
    store<S>(own_lanes, own);
    store<S>(deviation_lanes, deviations);
    const double n = static_cast<double>(rows), share = n / (before + n), both = before * share;
    for (int64_t lane = 0; lane < std::min<int64_t>(count, S::W); ++lane) {
      const double delta = own_lanes[lane] - mean[lane];
      mean[lane] += delta * share;
      square[lane] += deviation_lanes[lane] + delta * delta * both;
    }
  }

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    constexpr int64_t kChunk = 128;
    const int64_t channels = sizes.channels;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % sizes.parts();
      const int64_t first = sizes.begin_of(part), last = sizes.begin_of(part + 1);
      const T* const picture = x + item / sizes.parts() * sizes.pixels * channels;
      for (int64_t row = first; row < last; row += kChunk) {
        const int64_t rows = std::min(kChunk, last - row);
        for (int64_t c = 0; c < channels; c += S::W) {
          add<S>(picture + row * channels + c, rows, channels - c, static_cast<double>(row - first),
                 means + item * channels + c, squares + item * channels + c);
        }
      }
    }
  }
};

/// Items: pixels.
template <typename T>
struct RowsForward {
  NormSizes sizes;
  const T* x;
  T* y;
  const float *scale, *shift;  // (B, C)

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t channels = sizes.channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t table = row / sizes.pixels * channels;
      for (int64_t c = 0; c < channels; c += S::W) {
        typename S::Vector z, a, b;
        load_some<S>(z, x + row * channels + c, channels - c);
        load_some<S>(a, scale + table + c, channels - c);
        load_some<S>(b, shift + table + c, channels - c);
        z = z * a + b;
        activated<S>(z, sizes.activates);
        store_some<S>(y + row * channels + c, z, channels - c);
      }
    }
  }
};

/// Items: (picture, part). Sums of dz and of dz times the normalised x, for each channel.
template <typename T>
struct RowsSums {
  NormSizes sizes;
  const T *x, *dy;
  const float *scale, *shift, *rstd, *hat_shift;  // (B, C)
  double *sums, *products;                        // (B, parts, C)

  template <typename S>
  SD_VECTORS_INLINE void add(int64_t at, int64_t rows, int64_t count, int64_t table, double* sum,
                             double* product) const {
    using V = typename S::Vector;
    V a, b, r, h, s = {}, p = {};
    load_some<S>(a, scale + table, count);
    load_some<S>(b, shift + table, count);
    load_some<S>(r, rstd + table, count);
    load_some<S>(h, hat_shift + table, count);
    for (int64_t row = 0; row < rows; ++row) {
      V in, d;
      load_some<S>(in, x + at + row * sizes.channels, count);
      load_some<S>(d, dy + at + row * sizes.channels, count);
      through_silu<S>(d, in * a + b, sizes.activates);
      s += d;
      p += d * (in * r + h);
    }
    float sum_lanes[S::W], product_lanes[S::W];
    store<S>(sum_lanes, s);
    store<S>(product_lanes, p);
    for (int64_t lane = 0; lane < std::min<int64_t>(count, S::W); ++lane) {
      sum[lane] += sum_lanes[lane];
      product[lane] += product_lanes[lane];
    }
  }

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    constexpr int64_t kChunk = 128;
    const int64_t channels = sizes.channels;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % sizes.parts(), picture = item / sizes.parts();
      const int64_t last = sizes.begin_of(part + 1);
      for (int64_t row = sizes.begin_of(part); row < last; row += kChunk) {
        for (int64_t c = 0; c < channels; c += S::W) {
          add<S>((picture * sizes.pixels + row) * channels + c, std::min(kChunk, last - row),
                 channels - c, picture * channels + c, sums + item * channels + c,
                 products + item * channels + c);
        }
      }
    }
  }
};

/// Items: pixels. dx = dz scale + x slope + offset.
template <typename T>
struct RowsBackward {
  NormSizes sizes;
  const T *x, *dy;
  T* dx;
  const float *scale, *shift, *slope, *offset;  // (B, C)

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t channels = sizes.channels;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t table = row / sizes.pixels * channels;
      for (int64_t c = 0; c < channels; c += S::W) {
        typename S::Vector in, d, a, b, m, n;
        load_some<S>(in, x + row * channels + c, channels - c);
        load_some<S>(d, dy + row * channels + c, channels - c);
        load_some<S>(a, scale + table + c, channels - c);
        load_some<S>(b, shift + table + c, channels - c);
        load_some<S>(m, slope + table + c, channels - c);
        load_some<S>(n, offset + table + c, channels - c);
        through_silu<S>(d, in * a + b, sizes.activates);
        store_some<S>(dx + row * channels + c, d * a + (in * m + n), channels - c);
      }
    }
  }
};

#endif

}  // namespace sd::passes
