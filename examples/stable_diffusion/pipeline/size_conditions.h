// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace sd {

/// What SDXL is told about sizes, with diffusers' names. An empty pair has its default.
/// Paper: Podell et al. 2023, arXiv:2307.01952, section 2.2
struct SizeConditions {
  std::vector<int64_t> original_size;          ///< height, width; default: the picture's
  std::vector<int64_t> crops_coords_top_left;  ///< top, left; default: 0, 0
  std::vector<int64_t> target_size;            ///< height, width; default: the picture's

  /// Whether nothing is set.
  bool empty() const {
    return original_size.empty() && crops_coords_top_left.empty() && target_size.empty();
  }
};

/// The six numbers in the UNet's order for a picture of that size: (1, 6) fp32.
/// Errors: c10::ValueError for a list that is no pair, sizes below 1 and crops below 0
torch::Tensor time_ids(const SizeConditions& conditions, int64_t height, int64_t width);

}  // namespace sd
