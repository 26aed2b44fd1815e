// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/size_views.h"

#include <ATen/ATen.h>

#include <random>

#include "research/pretraining/layout.h"

namespace pretraining {
namespace {

at::Tensor resized(const at::Tensor& picture, int64_t side) {
  return at::_upsample_bilinear2d_aa(picture, {side, side}, /*align_corners=*/false);
}

}  // namespace

at::Tensor plain_sizes(int64_t side) {
  const auto whole = static_cast<float>(side);
  return at::tensor({whole, whole, 0.F, 0.F, whole, whole}).view({1, 6});
}

SizedPictures with_sizes(const at::Tensor& pictures, int64_t first, const nlohmann::json& options) {
  const int64_t side = pictures.size(-1), larger = side + side / 2;
  std::vector<at::Tensor> views, sizes;
  for (int64_t i = 0; i < pictures.size(0); ++i) {
    std::mt19937_64 random(options.value("seed", uint64_t{0}) * 0x9E3779B97F4A7C15ULL +
                           static_cast<uint64_t>(first + i));
    auto view = pictures.narrow(0, i, 1);
    auto told = plain_sizes(side);
    const bool is_small = uniform(random) < options.value("small", 0.3);
    const bool is_cut = uniform(random) < options.value("cut", 0.3);
    if (is_small) {
      const int64_t original = side / 8 + below(random, side / 8 + 1);
      view = resized(resized(view, original), side);
      told.narrow(1, 0, 2).fill_(static_cast<double>(original));
    }
    if (is_cut) {
      // Not at the corner, of which the numbers say what they say of a whole picture.
      const int64_t places = larger - side + 1, place = 1 + below(random, places * places - 1);
      const int64_t top = place / places, left = place % places;
      view = resized(view, larger).narrow(2, top, side).narrow(3, left, side);
      told[0][2] = static_cast<double>(top);
      told[0][3] = static_cast<double>(left);
    }
    views.push_back(view);
    sizes.push_back(told);
  }
  return {at::cat(views), at::cat(sizes)};
}

}  // namespace pretraining
