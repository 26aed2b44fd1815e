// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "support/fake_cuda/device.h"

namespace fake_cuda {
namespace {

constexpr size_t kPinnedRounding = 512;

std::mutex pinned_mutex;
std::map<const char*, size_t>& pinned_blocks() {
  static auto* blocks = new std::map<const char*, size_t>;
  return *blocks;
}

void release_pinned(void* address) {
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned_blocks().erase(static_cast<const char*>(address));
  std::free(address);
}

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, nullptr, &release_pinned, c10::kCPU};
    const size_t rounded = (bytes + kPinnedRounding - 1) / kPinnedRounding * kPinnedRounding;
    void* address = std::aligned_alloc(kPinnedRounding, rounded);
    TORCH_CHECK(address, "fake CUDA: expected ", rounded, " bytes of pinned memory, got none");
    std::memset(address, 0xff, rounded);  // NaN
    const std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned_blocks()[static_cast<const char*>(address)] = rounded;
    return {address, address, &release_pinned, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

}  // namespace

c10::Allocator& pinned_allocator() {
  static PinnedMemory* memory = new PinnedMemory;
  return *memory;
}

bool is_pinned(const void* address) {
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  const auto* wanted = static_cast<const char*>(address);
  auto found = pinned_blocks().upper_bound(wanted);
  if (found == pinned_blocks().begin()) return false;
  --found;
  return wanted < found->first + found->second;
}

}  // namespace fake_cuda
