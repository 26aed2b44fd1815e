// SPDX-License-Identifier: Apache-2.0
#include "pipeline/size_conditions.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace sd {

torch::Tensor time_ids(const SizeConditions& conditions, int64_t height, int64_t width) {
  std::vector<double> numbers;
  const auto add = [&](const std::vector<int64_t>& pair, int64_t first, int64_t second,
                       const char* name, int64_t least) {
    TORCH_CHECK_VALUE(pair.empty() || pair.size() == 2, "--", name, ": expected two numbers, got ",
                      pair.size());
    for (const int64_t number : pair) {
      TORCH_CHECK_VALUE(number >= least, "--", name, ": expected numbers from ", least, " on, got ",
                        number);
    }
    numbers.push_back(static_cast<double>(pair.empty() ? first : pair[0]));
    numbers.push_back(static_cast<double>(pair.empty() ? second : pair[1]));
  };
  add(conditions.original_size, height, width, "original_size", 1);
  add(conditions.crops_coords_top_left, 0, 0, "crops_coords_top_left", 0);
  add(conditions.target_size, height, width, "target_size", 1);
  return at::tensor(numbers, at::kFloat).view({1, -1});
}

}  // namespace sd
