// SPDX-License-Identifier: Apache-2.0
// What LibTorch asks a device for besides kernels: how many there are, which is current, streams
// and events. Work is done when it is called, so streams and events have nothing to order.
#include "support/fake_cuda/device.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/generator.h"
#include "support/fake_cuda/operators.h"

namespace fake_cuda {
namespace {

thread_local c10::DeviceIndex device_now = 0;
thread_local int64_t stream_now[kDeviceCount] = {};

// As the driver does it: the variable lists those that a process may see.
c10::DeviceIndex visible_devices() {
  static const auto count = [] {
    const char* list = std::getenv("CUDA_VISIBLE_DEVICES");
    if (!list) return static_cast<c10::DeviceIndex>(kDeviceCount);
    const std::string text(list);
    const std::ptrdiff_t listed = text.empty() ? 0 : 1 + std::count(text.begin(), text.end(), ',');
    return static_cast<c10::DeviceIndex>(std::min<std::ptrdiff_t>(listed, kDeviceCount));
  }();
  return count;
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  static constexpr c10::DeviceType static_type = c10::kCUDA;
  Guard() = default;

  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return visible_devices(); }
  c10::Device getDevice() const override { return {c10::kCUDA, current_device()}; }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    set_current_device(device.index());
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    if (device.has_index()) set_current_device(device.index());
    return before;
  }

  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, stream_now[index_of(device)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return pooled(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return pooled(device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = getStream(stream.device());
    stream_now[index_of(stream.device())] = stream.id();
    return before;
  }

  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count_wait("stream.synchronize"); }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    count_wait("device.synchronize");
  }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    static int only;
    *event = &only;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { count_wait("event.synchronize"); }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 0; }

 private:
  static size_t index_of(c10::Device device) {
    return static_cast<size_t>(device.has_index() ? device.index() : current_device());
  }
  static c10::Stream pooled(c10::Device device) {
    constexpr int64_t kStreamsOfPool = 32;
    static std::atomic<int64_t> next{0};
    return c10::Stream(c10::Stream::UNSAFE, device, 1 + next++ % kStreamsOfPool);
  }
};

}  // namespace
}  // namespace fake_cuda

namespace at {

// The registry knows this class by its name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}

  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return deviceCount() > 0; }
  c10::DeviceIndex deviceCount() const override { return fake_cuda::visible_devices(); }
  int getNumGPUs() const override { return fake_cuda::visible_devices(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  long versionCUDART() const override { return 13000; }
  std::string showConfig() const override { return "simulated CUDA\n"; }

  c10::DeviceIndex current_device() const override { return fake_cuda::current_device(); }
  c10::DeviceIndex getCurrentDevice() const override { return fake_cuda::current_device(); }
  void setCurrentDevice(c10::DeviceIndex i) const override { fake_cuda::set_current_device(i); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex i) const override {
    const auto before = fake_cuda::current_device();
    fake_cuda::set_current_device(i);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex i) const override {
    return i < 0 ? fake_cuda::current_device() : exchangeDevice(i);
  }
  void deviceSynchronize(c10::DeviceIndex) const override {
    fake_cuda::count_wait("device.synchronize");
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex i) const override {
    return fake_cuda::default_generator(i);
  }
  at::Generator getNewGenerator(c10::DeviceIndex i) const override {
    return at::make_generator<fake_cuda::DeviceGenerator>(i < 0 ? fake_cuda::current_device() : i);
  }

  Device getDeviceFromPtr(void* address) const override {
    const auto index = fake_cuda::device_of(address);
    TORCH_CHECK(index >= 0,
                "The specified pointer resides on host memory and is not registered "
                "with any CUDA device.");
    return {c10::kCUDA, index};
  }
  bool isPinnedPtr(const void* address) const override { return fake_cuda::is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return &fake_cuda::pinned_allocator();
  }
  c10::Allocator* getCUDADeviceAllocator() const override { return &fake_cuda::device_allocator(); }
};

}  // namespace at

namespace fake_cuda {

c10::DeviceIndex current_device() { return device_now; }

void set_current_device(c10::DeviceIndex index) { device_now = checked(index); }

int64_t current_stream(c10::DeviceIndex index) { return stream_now[index]; }

c10::DeviceIndex checked(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < kDeviceCount, "Invalid device argument ",
              static_cast<int>(index), ": did you call init?");
  return index;
}

void register_device() {
  using Hooks = at::RegistererCUDAHooksRegistry;
  static const Hooks hooks("CUDAHooks", at::CUDAHooksRegistry(),
                           &Hooks::DefaultCreator<at::CUDAHooks>);
  static const c10::impl::DeviceGuardImplRegistrar guard(c10::kCUDA, new Guard);
  // Above CUDA's own priority, in case of a LibTorch that registers one.
  c10::SetAllocator(c10::kCUDA, &device_allocator(), /*priority=*/1);
}

}  // namespace fake_cuda
