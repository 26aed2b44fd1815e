// SPDX-License-Identifier: Apache-2.0
#include "training/buckets.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace training {

BucketOptions BucketOptions::of(int64_t resolution) {
  return {resolution, resolution / 2, resolution * 2, std::max<int64_t>(8, resolution / 8)};
}

std::vector<Size> bucket_sizes(const BucketOptions& options) {
  TORCH_CHECK_VALUE(options.step > 0, "--bucket_reso_steps: expected a positive number, got ",
                    options.step);
  const auto down = [&](int64_t side) { return side / options.step * options.step; };
  const int64_t area = options.resolution * options.resolution;
  std::set<Size> sizes;
  if (const int64_t square = down(options.resolution)) sizes.insert({square, square});
  const int64_t first = (options.min_size + options.step - 1) / options.step * options.step;
  for (int64_t width = std::max(first, options.step); width <= options.max_size;
       width += options.step) {
    const int64_t height = std::min(down(options.max_size), down(area / width));
    if (height < std::max(options.min_size, options.step)) continue;
    sizes.insert({width, height});
    sizes.insert({height, width});
  }
  TORCH_CHECK_VALUE(!sizes.empty(), "--bucket_reso_steps: expected at most the resolution ",
                    options.resolution, ", got ", options.step);
  return {sizes.begin(), sizes.end()};
}

Size nearest_bucket(const std::vector<Size>& buckets, Size picture) {
  if (std::find(buckets.begin(), buckets.end(), picture) != buckets.end()) return picture;
  const auto shape = [](Size size) {
    return static_cast<double>(size.width) / static_cast<double>(size.height);
  };
  const auto distance = [&](Size size) { return std::abs(shape(size) - shape(picture)); };
  return *std::min_element(buckets.begin(), buckets.end(),
                           [&](Size a, Size b) { return distance(a) < distance(b); });
}

}  // namespace training
