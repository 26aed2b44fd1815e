// SPDX-License-Identifier: Apache-2.0
#include "training/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <fstream>
#include <sstream>
#include <string>

namespace training {

int64_t peak_memory(c10::Device device) {
  if (!device.is_cpu()) {
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto here = c10::impl::VirtualGuardImpl(device.type()).getDevice();
    const auto index = device.has_index() ? device.index() : here.index();
    // What the allocator holds, not what tensors fill of it: that much a card must have.
    return c10::getDeviceAllocator(device.type())->getDeviceStats(index).reserved_bytes[kAll].peak;
  }
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    int64_t kilobytes = 0;
    std::istringstream(line.substr(6)) >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

void release_cached_memory(c10::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

}  // namespace training
