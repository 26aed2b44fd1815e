// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cuda {

/// A GPU of this machine, as its driver describes it.
struct Card {
  std::string name;
  int64_t bytes = 0;  ///< of its memory
};

/// The GPUs that this process may use, in their order; none without a driver. It does not ask
/// LibTorch, so that it tells of GPUs that LibTorch cannot use.
const std::vector<Card>& cards();

}  // namespace cuda
