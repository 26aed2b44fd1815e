// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/options.h>

#include <cstdint>
#include <vector>

// Bases of many layers, made in all threads at once.

namespace lightlora {
enum class Side;  // basis.h, whose bodies include this
}  // namespace lightlora

namespace lightlora::detail {

/// A basis that is to be made, in memory that is there already.
struct BasisJob {
  Side side;
  int64_t count, width;
  uint64_t seed, stream;
  AuxInit kind;
  at::Tensor basis;

  void run() const;
};

/// While it lives, `make_basis` in this thread hands out bases without values, which `finish` makes
/// together. For adapters only that do not look at their bases while they are made.
class BasisBatch {
 public:
  BasisBatch() : outer_(current()) { current() = this; }
  BasisBatch(const BasisBatch&) = delete;
  BasisBatch& operator=(const BasisBatch&) = delete;
  ~BasisBatch() { current() = outer_; }

  /// Makes what has been handed out so far.
  void finish();

  /// Whether a batch of this thread has taken the job.
  static bool take(const BasisJob& job) {
    if (current() == nullptr) return false;
    current()->jobs_.push_back(job);
    return true;
  }

 private:
  static BasisBatch*& current() {
    static thread_local BasisBatch* batch = nullptr;
    return batch;
  }

  std::vector<BasisJob> jobs_;
  BasisBatch* outer_;
};

}  // namespace lightlora::detail
