// SPDX-License-Identifier: Apache-2.0
#include "support/fake_cuda/dry_device.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/InlineStreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/dry_state.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/operators.h"

namespace fake_cuda {
namespace {

constexpr int64_t kRecordingStream = 1;
std::atomic<bool> recording{false};

class OnRecordingStream {
 public:
  OnRecordingStream()
      : guard_(c10::kCUDA),
        before_(guard_.exchangeStream(
            c10::Stream(c10::Stream::UNSAFE, guard_.getDevice(), kRecordingStream))) {}
  ~OnRecordingStream() { guard_.exchangeStream(before_); }
  OnRecordingStream(const OnRecordingStream&) = delete;
  OnRecordingStream& operator=(const OnRecordingStream&) = delete;

 private:
  c10::impl::VirtualGuardImpl guard_;
  c10::Stream before_;
};

}  // namespace

bool is_recording() { return recording; }

void start_dry_device() {
  static const bool once = [] {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::empty", "memory_format");
    TORCH_CHECK(
        !op.hasKernelForDispatchKey(c10::DispatchKey::CUDA),
        "'--dry_run': expected a program that has not loaded LibTorch's CUDA libraries, got "
        "one that is linked with them; hint: build with LIGHTLORA_TORCH=DIRECT");
    register_device();
    register_dry_kernels();
    return true;
  }();
  static_cast<void>(once);
}

void DryRecording::warm_up(const std::function<void()>& work) {
  static std::atomic<bool> warm{false};
  if (!warm.exchange(true)) device_allocator().emptyCache();
  const OnRecordingStream here;
  work();
}

void DryRecording::record(const std::function<void()>& work) {
  device_allocator().emptyCache();
  const auto before = counts().kernels;
  const double operations = dry_operations();
  const OnRecordingStream here;
  recording = true;
  try {
    work();
  } catch (...) {
    recording = false;
    throw;
  }
  recording = false;
  kernels_ = counts().kernels;
  for (const auto& [name, count] : before) kernels_[name] -= count;
  operations_ = dry_operations() - operations;
}

void DryRecording::replay() const {
  for (const auto& [name, count] : kernels_) {
    const auto dot = name.find('.');
    const c10::OperatorName full("aten::" + name.substr(0, dot),
                                 dot == std::string::npos ? "" : name.substr(dot + 1));
    for (int64_t i = 0; i < count; ++i) count_kernel(full);
  }
  count_operations(operations_);
}

}  // namespace fake_cuda
