// SPDX-License-Identifier: Apache-2.0
// How large the tensors are that something makes, whichever operators make them.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace lightlora_tests {

/// Bytes of the largest single allocation on the CPU that `call` makes in this thread.
template <typename Call>
int64_t largest_allocation(const Call& call) {
  struct Log : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* /*at*/, int64_t size, size_t /*allocated*/, size_t /*reserved*/,
                           c10::Device /*device*/) override {
      largest = std::max(largest, size);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t largest = 0;
  };
  const auto log = std::make_shared<Log>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, log);
  call();
  return log->largest;
}

}  // namespace lightlora_tests
