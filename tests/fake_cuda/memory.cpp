// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <c10/util/Exception.h>
#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "recording.h"
#include "support/fake_cuda/fake_cuda.h"

namespace fake_cuda {
namespace {

// Address space, of which only touched pages cost memory.
constexpr size_t kBytesOfDevice = size_t{64} << 30;
// As CUDA's allocator rounds; the vector units of the CPU's kernels then see one alignment
// everywhere.
constexpr size_t kRounding = 512;
// Released blocks that keep their pages; beyond that the system gets them back.
constexpr size_t kResidentLimit = size_t{256} << 20;
// A released block rests while so many of its size were released after it, so that a pointer into
// it meets an unused block for a while instead of the next owner's.
constexpr size_t kRest = 4;
// All bits set: NaN in every floating point type, -1 as an index.
constexpr int kPoison = 0xff;

struct Block {
  size_t bytes;  // asked for
  size_t rounded;
  bool live;
  bool poisoned;       // its pages are resident and hold the poison
  uint64_t recording;  // that it was handed out in; 0: none
};

// One piece of memory that is mapped twice: tensors hold addresses of the mapping that nothing may
// touch, kernels use the same offsets in the other one.
class Arena {
 public:
  Arena() {
    const int file = memfd_create("fake_cuda", MFD_CLOEXEC);
    const size_t size = kBytesOfDevice * kDeviceCount;
    TORCH_CHECK(file >= 0 && ftruncate(file, static_cast<off_t>(size)) == 0,
                "fake CUDA: expected a memory file of ", size,
                " bytes, got: ", std::strerror(errno));
    file_ = file;
    sealed_ = map(size, PROT_NONE);
    open_ = map(size, PROT_READ | PROT_WRITE);
    for (int i = 0; i < kDeviceCount; ++i) next_[i] = sealed_ + i * kBytesOfDevice;
  }

  c10::DeviceIndex device_of(const void* address) const {
    const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(sealed_);
    return offset < kBytesOfDevice * kDeviceCount
               ? static_cast<c10::DeviceIndex>(offset / kBytesOfDevice)
               : c10::DeviceIndex{-1};
  }

  char* allocate(c10::DeviceIndex device, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t rounded = (bytes + kRounding - 1) / kRounding * kRounding;
    char* address = take_released(device, rounded);
    if (!address) address = take_fresh(device, rounded);
    auto& block = blocks_[address];
    if (!block.poisoned) std::memset(opened(address), kPoison, rounded);
    block = {bytes, rounded, true, false, note_allocation(address)};
    live_[device] += static_cast<int64_t>(rounded);
    peak_[device] = std::max(peak_[device], live_[device]);
    return address;
  }

  void poison_block_of(uint64_t recording, char* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto& block = blocks_.at(address);
    if (block.live && block.recording == recording)
      std::memset(opened(address), kPoison, block.bytes);
  }

  void release(char* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& block = blocks_.at(address);
    const auto device = device_of(address);
    block.live = false;
    live_[device] -= static_cast<int64_t>(block.rounded);
    if (resident_ + block.rounded <= kResidentLimit) {
      std::memset(opened(address), kPoison, block.rounded);
      block.poisoned = true;
      resident_ += block.rounded;
    } else {
      fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address - sealed_,
                static_cast<off_t>(block.rounded));
    }
    released_[device][block.rounded].push_back(address);
  }

  void* touchable(const void* address, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* wanted = static_cast<char*>(const_cast<void*>(address));
    auto found = blocks_.upper_bound(wanted);
    TORCH_CHECK(found != blocks_.begin(), "fake CUDA: ", address, " was never allocated");
    --found;
    const Block& block = found->second;
    TORCH_CHECK(block.live,
                "fake CUDA: an illegal memory access was encountered: a tensor's memory (", address,
                ") was released before this use");
    TORCH_CHECK(wanted + bytes <= found->first + block.bytes,
                "fake CUDA: an illegal memory access was encountered: ", bytes, " bytes at offset ",
                wanted - found->first, " of a block of ", block.bytes);
    return opened(wanted);
  }

  std::pair<int64_t, int64_t> usage(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {live_[device], peak_[device]};
  }

  void reset_peak(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    peak_[device] = live_[device];
  }

 private:
  char* map(size_t size, int protection) const {
    void* address = mmap(nullptr, size, protection, MAP_SHARED | MAP_NORESERVE, file_, 0);
    TORCH_CHECK(address != MAP_FAILED, "fake CUDA: expected ", size,
                " bytes of address space, got: ", std::strerror(errno));
    return static_cast<char*>(address);
  }

  char* opened(char* address) const { return open_ + (address - sealed_); }

  char* take_released(c10::DeviceIndex device, size_t rounded) {
    auto& waiting = released_[device][rounded];
    if (waiting.size() <= kRest) return nullptr;
    char* address = waiting.front();
    waiting.pop_front();
    if (blocks_.at(address).poisoned) resident_ -= rounded;
    return address;
  }

  char* take_fresh(c10::DeviceIndex device, size_t rounded) {
    char* address = next_[device];
    const size_t left = sealed_ + (device + 1) * kBytesOfDevice - address;
    TORCH_CHECK_WITH(OutOfMemoryError, rounded < left, "CUDA out of memory. Tried to allocate ",
                     rounded, " bytes on simulated GPU ", static_cast<int>(device), ", of which ",
                     left, " are free");
    next_[device] += rounded;
    blocks_[address] = {};
    return address;
  }

  int file_ = -1;
  char* sealed_ = nullptr;
  char* open_ = nullptr;
  std::mutex mutex_;
  std::map<char*, Block> blocks_;
  std::unordered_map<size_t, std::deque<char*>> released_[kDeviceCount];
  char* next_[kDeviceCount] = {};
  size_t resident_ = 0;
  int64_t live_[kDeviceCount] = {}, peak_[kDeviceCount] = {};
};

// Never destroyed: tensors in static variables may outlive it otherwise.
Arena& arena() {
  static auto* only = new Arena;
  return *only;
}

void release_device_memory(void* address) {
  if (address) arena().release(static_cast<char*>(address));
}

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* address = bytes ? arena().allocate(current_device(), bytes) : nullptr;
    return {address, address, &release_device_memory, c10::Device(c10::kCUDA, current_device())};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_device_memory; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    if (bytes) std::memmove(touchable(to, bytes), touchable(from, bytes), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  void resetAccumulatedStats(c10::DeviceIndex device) override { checked(device); }
  void resetPeakStats(c10::DeviceIndex device) override { arena().reset_peak(checked(device)); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    return {kBytesOfDevice - arena().usage(checked(device)).first, kBytesOfDevice};
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const auto [live, peak] = arena().usage(checked(device));
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* bytes : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes}) {
      (*bytes)[0].current = live;
      (*bytes)[0].peak = peak;
    }
    return stats;
  }
};

// --- the message of a program that touches device memory
// ------------------------------------------------

struct sigaction previous_action;

void say(const char* text) { [[maybe_unused]] const auto n = ::write(2, text, std::strlen(text)); }

void on_fault(int signal, siginfo_t* info, void* context) {
  const auto device = arena().device_of(info->si_addr);
  if (device >= 0) {
    say(device == 0 ? "fake CUDA: host code touched memory of cuda:0; the stack is\n"
                    : "fake CUDA: host code touched memory of cuda:1; the stack is\n");
    void* frames[40];
    backtrace_symbols_fd(frames, backtrace(frames, 40), 2);
  } else if (previous_action.sa_flags & SA_SIGINFO) {
    if (previous_action.sa_sigaction) return previous_action.sa_sigaction(signal, info, context);
  }
  // The access is repeated on return, and then ends the process as it would have without us.
  std::signal(signal, SIG_DFL);
}

const bool watching = (report_host_accesses(), true);

}  // namespace

c10::DeviceAllocator& device_allocator() {
  static DeviceMemory* memory = new DeviceMemory;
  return *memory;
}

c10::DeviceIndex device_of(const void* address) { return arena().device_of(address); }

void* touchable(const void* address, size_t bytes) { return arena().touchable(address, bytes); }

void poison_block_of(uint64_t recording, void* address) {
  arena().poison_block_of(recording, static_cast<char*>(address));
}

void report_host_accesses() {
  arena();
  struct sigaction action = {};
  action.sa_sigaction = &on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_action);
}

int64_t live_bytes(int device) { return arena().usage(device).first; }

int64_t peak_bytes(int device) { return arena().usage(device).second; }

void reset_peak(int device) { arena().reset_peak(device); }

}  // namespace fake_cuda
