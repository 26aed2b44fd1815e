// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cuda {

/// A GPU of this machine, as its driver describes it.
struct Card {
  std::string name;
  int64_t bytes = 0;   ///< of its memory
  int generation = 0;  ///< first number of its compute capability: 7 Turing, 8 Ampere
  std::string uuid;    ///< in hexadecimal, the same in every process; empty if unknown
};

/// The GPUs that this process may use, in their order; none without a driver. It does not ask
/// LibTorch, so that it tells of GPUs that LibTorch cannot use.
const std::vector<Card>& cards();

/// The precision in which a device computes fastest without losing a picture: bf16 on a GPU from
/// Ampere on, fp16 on an older one, fp32 on a processor, and on a device that no driver describes.
c10::ScalarType fast_precision(c10::Device device);

}  // namespace cuda
