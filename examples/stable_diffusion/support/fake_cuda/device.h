// SPDX-License-Identifier: Apache-2.0
// What both flavours of the device have: the simulated one of the tests, whose kernels compute, and
// the dry one, which counts (dry_device.h).
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>

#include <string>

namespace fake_cuda {

/// Takes CUDA's places in LibTorch for hooks, streams, generators and memory. Before the first
/// question for CUDA, which LibTorch asks once.
void register_device();

/// The calling thread's current device, and its current stream there.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);
int64_t current_stream(c10::DeviceIndex index);

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

/// Errors: c10::Error for an index that is no device's
c10::DeviceIndex checked(c10::DeviceIndex index);

/// Host memory that counts as pinned.
c10::Allocator& pinned_allocator();
bool is_pinned(const void* address);

/// Throws if kernels are being recorded: `what` would have to wait for the device, or touches the
/// host.
void refuse_while_recording(const std::string& what);

// Each flavour has its own:

/// The allocator of both devices; it allocates on the calling thread's current one.
c10::DeviceAllocator& device_allocator();
/// The device whose memory `address` lies in, or -1.
c10::DeviceIndex device_of(const void* address);
bool is_recording();

}  // namespace fake_cuda
