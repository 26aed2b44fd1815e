// SPDX-License-Identifier: Apache-2.0
// Device memory that only kernels can touch, and pinned host memory.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>

namespace fake_cuda {

/// The allocator of both devices; it allocates on the calling thread's current one.
c10::DeviceAllocator& device_allocator();
c10::Allocator& pinned_allocator();
bool is_pinned(const void* address);

/// The device whose memory `address` lies in, or -1.
c10::DeviceIndex device_of(const void* address);

/// Where the same byte can be touched. Throws unless all `bytes` lie in one block that was not
/// released.
void* touchable(const void* address, size_t bytes);

/// Fills a block with NaN if it still is the one that this recording was given.
void poison_block_of(uint64_t recording, void* address);

/// The calling thread's current device.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);

class DeviceScope {
 public:
  explicit DeviceScope(c10::DeviceIndex index) : before_(current_device()) {
    set_current_device(index);
  }
  ~DeviceScope() { set_current_device(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  c10::DeviceIndex before_;
};

}  // namespace fake_cuda
