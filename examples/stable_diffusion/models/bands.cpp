// SPDX-License-Identifier: Apache-2.0
#include "models/bands.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <vector>

#include "models/streaming.h"

namespace sd {
namespace {

at::ScalarType wide_type(const at::Tensor& x) {
  return at::isReducedFloatingType(x.scalar_type()) ? at::kFloat : x.scalar_type();
}

// A normalisation of one map as a factor and a summand for each channel, (B, C, 1, 1).
struct Affine {
  at::Tensor scale, shift;
};

Affine affine_of(const torch::nn::GroupNormImpl& norm, const at::Tensor& x, int64_t rows) {
  const int64_t groups = norm.options.num_groups(), height = x.size(2);
  std::vector<at::Tensor> means, variances;
  std::vector<double> shares;
  for (int64_t y = 0; y < height; y += rows) {
    const int64_t count = std::min(rows, height - y);
    const auto band = x.narrow(2, y, count).unflatten(1, {groups, -1}).to(wide_type(x));
    const auto [variance, mean] = at::var_mean(band, at::IntArrayRef{2, 3, 4}, /*correction=*/0);
    means.push_back(mean.to(at::kDouble));
    variances.push_back(variance.to(at::kDouble));
    shares.push_back(static_cast<double>(count) / static_cast<double>(height));
    let_go_of_weights();
  }
  auto mean = at::zeros_like(means.front());
  for (size_t i = 0; i < means.size(); ++i) mean += shares[i] * means[i];
  auto variance = at::zeros_like(mean);
  for (size_t i = 0; i < means.size(); ++i) {
    variance += shares[i] * (variances[i] + (means[i] - mean).square());
  }
  const auto of_channels = [&](const at::Tensor& of_groups) {
    return of_groups.repeat_interleave(x.size(1) / groups, /*dim=*/1);
  };
  const auto scale = of_channels((variance + norm.options.eps()).rsqrt()) * norm.weight;
  const auto shift = norm.bias - of_channels(mean) * scale;
  const auto shaped = [&](const at::Tensor& value) {
    return value.to(wide_type(x)).unsqueeze(-1).unsqueeze(-1);
  };
  return {shaped(scale), shaped(shift)};
}

// A convolution of 3 x 3 over a map of which `input(from, to)` makes rows.
template <typename Input>
at::Tensor conv_rows(const torch::nn::Conv2dImpl& conv, int64_t height, int64_t rows,
                     const Input& input) {
  at::Tensor result;
  for (int64_t y = 0; y < height; y += rows) {
    const int64_t end = std::min(y + rows, height);
    const int64_t above = y > 0 ? 1 : 0, below = end < height ? 1 : 0;
    const auto band =
        at::constant_pad_nd(input(y - above, end + below), {0, 0, 1 - above, 1 - below});
    const auto part = at::conv2d(band, conv.weight, conv.bias, /*stride=*/1,
                                 /*padding=*/at::IntArrayRef{0, 1});
    if (!result.defined()) {
      result = streamed_map({part.size(0), part.size(1), height, part.size(3)}, part.options(),
                            part.suggest_memory_format());
    }
    result.narrow(2, y, end - y).copy_(part);
    let_go_of_weights(/*written=*/true);
  }
  return result;
}

}  // namespace

int64_t rows_of_band(const at::Tensor& x, int64_t channels) {
  constexpr int64_t kLargest = int64_t{1} << 26, kBand = int64_t{1} << 24;
  const int64_t row = x.size(0) * std::max(x.size(1), channels) * x.size(3);
  if (at::GradMode::is_enabled() || row * x.size(2) <= kLargest) return 0;
  return std::max(kBand / row, int64_t{1});
}

at::Tensor norm_silu_conv(torch::nn::GroupNorm& norm, torch::nn::Conv2d& conv, const at::Tensor& x,
                          int64_t rows) {
  const auto [scale, shift] = affine_of(*norm, x, rows);
  return conv_rows(*conv, x.size(2), rows,
                   [&, &scale = scale, &shift = shift](int64_t from, int64_t to) {
                     const auto band = x.narrow(2, from, to - from).to(wide_type(x));
                     at::Tensor normed = at::addcmul(shift, band, scale);
                     return at::silu_(normed).to(x.scalar_type());
                   });
}

at::Tensor add_shortcut(const at::Tensor& x, torch::nn::Conv2d& shortcut, const at::Tensor& added,
                        int64_t rows) {
  for (int64_t y = 0; y < x.size(2); y += rows) {
    const int64_t count = std::min(rows, x.size(2) - y);
    const auto band = added.narrow(2, y, count);
    x.narrow(2, y, count).add_(shortcut.is_empty() ? band : shortcut(band));
    let_go_of_weights(/*written=*/true);
  }
  return x;
}

at::Tensor enlarge_conv(torch::nn::Conv2d& conv, const at::Tensor& x, int64_t rows) {
  return conv_rows(*conv, 2 * x.size(2), rows, [&](int64_t from, int64_t to) {
    const int64_t first = from / 2, last = (to - 1) / 2;
    const auto band = x.narrow(2, first, last - first + 1);
    const auto large = at::upsample_nearest2d(band, {2 * band.size(2), 2 * band.size(3)});
    return large.narrow(2, from - 2 * first, to - from);
  });
}

}  // namespace sd
