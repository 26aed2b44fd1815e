// SPDX-License-Identifier: Apache-2.0
#include "support/fake_cuda/dry_memory.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/dry_device.h"
#include "support/fake_cuda/fake_cuda.h"

namespace fake_cuda {
namespace {

constexpr std::size_t kUnit = 512, kMega = std::size_t{1} << 20;
constexpr std::size_t kSmall = kMega, kSmallSegment = 2 * kMega;
constexpr std::size_t kMedium = 10 * kMega, kMediumSegment = 20 * kMega, kLargeUnit = 2 * kMega;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

std::size_t segment_size(std::size_t size) {
  if (size <= kSmall) return kSmallSegment;
  return size < kMedium ? kMediumSegment : round_up(size, kLargeUnit);
}

}  // namespace

CachingLayout::Blocks::iterator CachingLayout::find_free(std::size_t size, const Pool& pool) {
  auto& free = free_[pool];
  const auto found = free.lower_bound({size, 0});
  return found == free.end() ? blocks_.end() : blocks_.find(found->second);
}

CachingLayout::Blocks::iterator CachingLayout::new_segment(std::size_t size, const Pool& pool) {
  const std::size_t bytes = segment_size(size);
  const auto address = next_;
  next_ += bytes + kLargeUnit;  // a gap, so that no address belongs to two segments
  segments_[address] = {bytes, 0};
  reserved_ += static_cast<int64_t>(bytes);
  if (pool.recordings) held_ += static_cast<int64_t>(bytes);
  const auto block = blocks_.emplace(address, Block{bytes, address, pool, false}).first;
  set_free(block, true);
  return block;
}

void CachingLayout::set_free(Blocks::iterator block, bool free) {
  block->second.free = free;
  auto& list = free_[block->second.pool];
  const std::pair<std::size_t, std::uintptr_t> key{block->second.size, block->first};
  free ? static_cast<void>(list.insert(key)) : static_cast<void>(list.erase(key));
}

std::uintptr_t CachingLayout::allocate(std::size_t bytes, int64_t stream, bool recording) {
  const std::size_t size = round_up(std::max(bytes, kUnit), kUnit);
  const Pool pool{stream, recording, size <= kSmall};
  auto block = find_free(size, pool);
  if (block == blocks_.end()) block = new_segment(size, pool);
  set_free(block, false);
  const std::size_t rest = block->second.size - size;
  if (pool.small ? rest >= kUnit : rest > kSmall) {
    block->second.size = size;
    const auto other =
        blocks_.emplace(block->first + size, Block{rest, block->second.segment, pool, false}).first;
    set_free(other, true);
  }
  live_ += static_cast<int64_t>(block->second.size);
  auto& segment = segments_.at(block->second.segment);
  if (segment.live_blocks++ == 0 && !recording) held_ += static_cast<int64_t>(segment.bytes);
  return block->first;
}

CachingLayout::Blocks::iterator CachingLayout::merge(Blocks::iterator first,
                                                     Blocks::iterator second) {
  if (second->second.free) set_free(second, false);
  if (first->second.free) set_free(first, false);
  first->second.size += second->second.size;
  blocks_.erase(second);
  return first;
}

void CachingLayout::release(std::uintptr_t address) {
  auto block = blocks_.find(address);
  live_ -= static_cast<int64_t>(block->second.size);
  auto& segment = segments_.at(block->second.segment);
  if (--segment.live_blocks == 0 && !block->second.pool.recordings) {
    held_ -= static_cast<int64_t>(segment.bytes);
  }
  const auto joins = [&](Blocks::iterator other) {
    return other->second.free && other->second.segment == block->second.segment;
  };
  if (const auto next = std::next(block); next != blocks_.end() && joins(next)) {
    block = merge(block, next);
  }
  if (block != blocks_.begin() && joins(std::prev(block))) block = merge(std::prev(block), block);
  set_free(block, true);
}

void CachingLayout::empty_cache() {
  for (auto segment = segments_.begin(); segment != segments_.end();) {
    const auto block = blocks_.find(segment->first);
    const bool whole = block->second.free && block->second.size == segment->second.bytes;
    if (!whole || block->second.pool.recordings) {
      ++segment;
      continue;
    }
    set_free(block, false);
    blocks_.erase(block);
    reserved_ -= static_cast<int64_t>(segment->second.bytes);
    segment = segments_.erase(segment);
  }
}

namespace {

// Addresses of one device; nothing may touch them.
constexpr std::size_t kAddresses = std::size_t{1} << 40;

struct DryCard {
  explicit DryCard(std::uintptr_t base) : layout(base) {}
  CachingLayout layout;
  // While kernels are recorded nothing is given back.
  int64_t needed() const { return is_recording() ? layout.reserved() : layout.held(); }
  int64_t peak = 0, reserved_peak = 0, needed_peak = 0;
};

struct DryCards {
  DryCards() {
    void* address = mmap(nullptr, kAddresses * kDeviceCount, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(address != MAP_FAILED, "expected address space for the dry device, got none");
    base = reinterpret_cast<std::uintptr_t>(address);
    for (int i = 0; i < kDeviceCount; ++i) {
      cards.emplace_back(base + static_cast<std::size_t>(i) * kAddresses);
    }
  }
  std::uintptr_t base = 0;
  std::vector<DryCard> cards;
  std::mutex mutex;
};

DryCards& dry_cards() {
  static auto* only = new DryCards;
  return *only;
}

void release_dry(void* address) {
  if (!address) return;
  const std::lock_guard<std::mutex> lock(dry_cards().mutex);
  dry_cards().cards[static_cast<std::size_t>(device_of(address))].layout.release(
      reinterpret_cast<std::uintptr_t>(address));
}

class DryAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const auto device = current_device();
    void* address = nullptr;
    if (bytes) {
      auto& all = dry_cards();
      const std::lock_guard<std::mutex> lock(all.mutex);
      auto& card = all.cards[static_cast<std::size_t>(device)];
      address = reinterpret_cast<void*>(
          card.layout.allocate(bytes, current_stream(device), is_recording()));
      card.peak = std::max(card.peak, card.layout.live());
      card.reserved_peak = std::max(card.reserved_peak, card.layout.reserved());
      card.needed_peak = std::max(card.needed_peak, card.needed());
    }
    return {address, address, &release_dry, c10::Device(c10::kCUDA, device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_dry; }
  void copy_data(void*, const void*, size_t) const override {}
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    const std::lock_guard<std::mutex> lock(dry_cards().mutex);
    for (auto& card : dry_cards().cards) card.layout.empty_cache();
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  void resetAccumulatedStats(c10::DeviceIndex device) override { checked(device); }
  void resetPeakStats(c10::DeviceIndex device) override {
    const std::lock_guard<std::mutex> lock(dry_cards().mutex);
    auto& card = dry_cards().cards[static_cast<std::size_t>(checked(device))];
    card.peak = card.layout.live();
    card.reserved_peak = card.layout.reserved();
    card.needed_peak = card.needed();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    return {kAddresses, kAddresses};
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const std::lock_guard<std::mutex> lock(dry_cards().mutex);
    const auto& card = dry_cards().cards[static_cast<std::size_t>(checked(device))];
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = card.layout.live();
    stats.allocated_bytes[0].peak = card.peak;
    stats.reserved_bytes[0].current = card.layout.reserved();
    stats.reserved_bytes[0].peak = card.reserved_peak;
    return stats;
  }
};

}  // namespace

c10::DeviceAllocator& device_allocator() {
  static auto* only = new DryAllocator;
  return *only;
}

c10::DeviceIndex device_of(const void* address) {
  const auto offset = reinterpret_cast<std::uintptr_t>(address) - dry_cards().base;
  return offset < kAddresses * kDeviceCount ? static_cast<c10::DeviceIndex>(offset / kAddresses)
                                            : c10::DeviceIndex{-1};
}

DryMemory dry_memory() {
  const std::lock_guard<std::mutex> lock(dry_cards().mutex);
  const auto& card = dry_cards().cards[0];
  return {card.peak, card.reserved_peak, card.needed_peak};
}

int64_t peak_bytes(int device) {
  return device_allocator()
      .getDeviceStats(static_cast<c10::DeviceIndex>(device))
      .allocated_bytes[0]
      .peak;
}

void reset_dry_peaks() { device_allocator().resetPeakStats(0); }

}  // namespace fake_cuda
