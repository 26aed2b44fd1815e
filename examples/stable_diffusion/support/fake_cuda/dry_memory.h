// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

namespace fake_cuda {

/// How LibTorch's CUDA allocator divides a card (c10/cuda/CUDACachingAllocator.cpp), without the
/// memory: blocks of multiples of 512 bytes out of segments of 2 MiB for blocks up to 1 MiB, of
/// 20 MiB up to 10 MiB, and of a multiple of 2 MiB beyond. Each stream, and the pool of the
/// recordings, has its own. What is released stays with the segment.
class CachingLayout {
 public:
  /// Takes its addresses from `base` on.
  explicit CachingLayout(std::uintptr_t base) : next_(base) {}

  struct Pool {
    int64_t stream = 0;
    bool recordings = false;
    bool small = false;
    bool operator<(const Pool& b) const {
      return std::tie(stream, recordings, small) < std::tie(b.stream, b.recordings, b.small);
    }
  };

  std::uintptr_t allocate(std::size_t bytes, int64_t stream, bool recording);
  void release(std::uintptr_t address);
  /// Gives segments back that no block of is in use, but none of the recordings' pool.
  void empty_cache();

  int64_t live() const { return live_; }
  int64_t reserved() const { return reserved_; }
  /// Of that, segments with a live block and those of the recordings' pool: the rest would be given
  /// back where a card has no more.
  int64_t held() const { return held_; }

 private:
  struct Segment {
    std::size_t bytes = 0;
    int64_t live_blocks = 0;
  };
  struct Block {
    std::size_t size = 0;
    std::uintptr_t segment = 0;
    Pool pool;
    bool free = false;
  };
  using Blocks = std::map<std::uintptr_t, Block>;

  Blocks::iterator find_free(std::size_t size, const Pool& pool);
  Blocks::iterator new_segment(std::size_t size, const Pool& pool);
  void set_free(Blocks::iterator block, bool free);
  Blocks::iterator merge(Blocks::iterator first, Blocks::iterator second);

  Blocks blocks_;                                                          // by address
  std::map<Pool, std::set<std::pair<std::size_t, std::uintptr_t>>> free_;  // by size
  std::map<std::uintptr_t, Segment> segments_;
  std::uintptr_t next_;
  int64_t live_ = 0, reserved_ = 0, held_ = 0;
};

}  // namespace fake_cuda
