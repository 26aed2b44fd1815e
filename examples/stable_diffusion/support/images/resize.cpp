// SPDX-License-Identifier: Apache-2.0
#include "support/images/resize.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace images {

namespace {

// 8 bits of value and 2 bits of headroom (Lanczos overshoots) leave 22 of 32 bits for the weight.
constexpr int kWeightBits = 32 - 8 - 2;

double bilinear(double x) { return std::abs(x) < 1 ? 1 - std::abs(x) : 0; }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double sinc(double x) {
  if (x == 0) return 1;
  x *= M_PI;
  return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Kernel {
  double (*function)(double);
  double support;
};

Kernel kernel_of(Filter filter) {
  switch (filter) {
    case Filter::kBilinear:
      return {bilinear, 1};
    case Filter::kBicubic:
      return {bicubic, 2};
    case Filter::kLanczos:
      return {lanczos, 3};
  }
  TORCH_INTERNAL_ASSERT(false, "images::resize: a filter without a kernel");
}

/// Weights of the input positions first, first + 1, ... for one output position.
struct Taps {
  int64_t first;
  std::vector<int32_t> weights;
};

std::vector<Taps> make_taps(int64_t in, int64_t out, const Kernel& kernel) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = kernel.support * stretch;
  std::vector<Taps> taps(static_cast<std::size_t>(out));
  std::vector<double> weights;
  for (int64_t x = 0; x < out; ++x) {
    const double centre = (static_cast<double>(x) + 0.5) * scale;
    const auto first = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    const auto end = std::min<int64_t>(static_cast<int64_t>(centre + support + 0.5), in);
    weights.clear();
    double sum = 0;
    for (int64_t i = first; i < end; ++i) {
      weights.push_back(kernel.function((static_cast<double>(i) - centre + 0.5) * (1 / stretch)));
      sum += weights.back();
    }
    Taps& result = taps[static_cast<std::size_t>(x)];
    result.first = first;
    for (const double weight : weights) {
      const double fixed = (sum != 0 ? weight / sum : weight) * (1 << kWeightBits);
      result.weights.push_back(static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return taps;
}

/// Weighted sums of values that lie `stride` bytes apart, for the three channels of a pixel.
void blend(const uint8_t* in, int64_t stride, const Taps& taps, uint8_t* out) {
  int32_t sums[3];
  std::fill_n(sums, 3, 1 << (kWeightBits - 1));
  in += taps.first * stride;
  for (const int32_t weight : taps.weights) {
    for (int channel = 0; channel < 3; ++channel) sums[channel] += in[channel] * weight;
    in += stride;
  }
  for (int channel = 0; channel < 3; ++channel) {
    out[channel] = static_cast<uint8_t>(std::clamp(sums[channel] >> kWeightBits, 0, 255));
  }
}

}  // namespace

Filter filter_by_name(const std::string& name) {
  if (name == "bilinear") return Filter::kBilinear;
  if (name == "bicubic") return Filter::kBicubic;
  if (name == "lanczos") return Filter::kLanczos;
  TORCH_CHECK_VALUE(false, "images::filter_by_name: expected bilinear, bicubic or lanczos, got '",
                    name, "'");
}

Image resize(const Image& image, int64_t width, int64_t height, Filter filter) {
  TORCH_CHECK_VALUE(!image.empty() && width > 0 && height > 0,
                    "images::resize: expected positive sizes, got ", image.width, "x", image.height,
                    " to ", width, "x", height);
  const Kernel kernel = kernel_of(filter);
  Image across = width == image.width ? image : Image(width, image.height);
  if (width != image.width) {
    const auto taps = make_taps(image.width, width, kernel);
    for (int64_t y = 0; y < image.height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        blend(image.row(y), 3, taps[static_cast<std::size_t>(x)], across.row(y) + x * 3);
      }
    }
  }
  if (height == image.height) return across;
  Image result(width, height);
  const auto taps = make_taps(image.height, height, kernel);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      blend(across.row(0) + x * 3, width * 3, taps[static_cast<std::size_t>(y)],
            result.row(y) + x * 3);
    }
  }
  return result;
}

Image resize_shorter_side(const Image& image, int64_t size, Filter filter) {
  TORCH_CHECK_VALUE(!image.empty() && size > 0,
                    "images::resize_shorter_side: expected a picture and a "
                    "positive size, got ",
                    image.width, "x", image.height, " to ", size);
  const auto longer = [size](int64_t long_side, int64_t short_side) {
    return size * long_side / short_side;
  };
  return image.width <= image.height
             ? resize(image, size, longer(image.height, image.width), filter)
             : resize(image, longer(image.width, image.height), size, filter);
}

}  // namespace images
