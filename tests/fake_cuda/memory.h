// SPDX-License-Identifier: Apache-2.0
// Device memory that only kernels can touch.
#pragma once
#include "support/fake_cuda/device.h"

namespace fake_cuda {

/// Where the same byte can be touched. Throws unless all `bytes` lie in one block that was not
/// released.
void* touchable(const void* address, size_t bytes);

/// Fills a block with NaN if it still is the one that this recording was given.
void poison_block_of(uint64_t recording, void* address);

}  // namespace fake_cuda
