// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace training {

/// The most memory that was in use so far, in bytes: of the process, or of a GPU what LibTorch took
/// of it. 0 if the system does not tell.
int64_t peak_memory(c10::Device device);

/// Gives a GPU what LibTorch keeps of it for later: for when a part of a run is done whose tensors
/// had other sizes than those to come.
void release_cached_memory(c10::Device device);

}  // namespace training
