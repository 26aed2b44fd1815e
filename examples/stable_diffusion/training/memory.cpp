// SPDX-License-Identifier: Apache-2.0
#include "training/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "support/cli/process.h"

namespace training {

int64_t peak_memory(c10::Device device) {
  if (!device.is_cpu()) {
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto here = c10::impl::VirtualGuardImpl(device.type()).getDevice();
    const auto index = device.has_index() ? device.index() : here.index();
    // What the allocator holds, not what tensors fill of it: that much a card must have.
    return c10::getDeviceAllocator(device.type())->getDeviceStats(index).reserved_bytes[kAll].peak;
  }
  return cli::peak_resident_memory();
}

void release_cached_memory(c10::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

}  // namespace training
