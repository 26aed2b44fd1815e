// SPDX-License-Identifier: Apache-2.0
// Clocks, statistics, memory and operator counts for the benchmarks.
#pragma once

#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/version.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/json.h"

#if LIGHTLORA_HAS_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#endif

namespace measure {

/// Seconds of processor time that this process has used: with one thread it is blind to whatever
/// else the machine does, except for what that leaves in the caches. With several threads it would
/// add them up, so that wall time is taken instead.
inline double now(bool processor_time) {
  if (processor_time) {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that a call takes on its device.
class Clock {
 public:
  Clock(at::Device device, int threads)
      : cuda_(device.is_cuda()), processor_time_(!cuda_ && threads == 1) {}

  std::string name() const {
    return cuda_ ? "CUDA events" : processor_time_ ? "processor time" : "wall time";
  }

  template <typename Call>
  double time(const Call& call) const {
#if LIGHTLORA_HAS_CUDA
    if (cuda_) {
      at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
      begin.record();
      call();
      end.record();
      end.synchronize();
      return 1e-3 * begin.elapsed_time(end);
    }
#endif
    const double begin = now(processor_time_);
    call();
    return now(processor_time_) - begin;
  }

 private:
  bool cuda_, processor_time_;
};

struct Statistics {
  double median = 0, quartile_range = 0;
  int64_t samples = 0;
};

inline double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double place = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const auto high = std::min(low + 1, values.size() - 1);
  return values[low] + (place - static_cast<double>(low)) * (values[high] - values[low]);
}

inline Statistics statistics(const std::vector<double>& values) {
  return {quantile(values, 0.5), quantile(values, 0.75) - quantile(values, 0.25),
          static_cast<int64_t>(values.size())};
}

/// Bytes of tensors allocated while the object lives: on a CPU by this thread, on a GPU by all.
class Memory {
 public:
  explicit Memory(at::Device device) : device_(device), log_(std::make_shared<Log>()) {
    if (device.is_cpu()) {
      guard_ = std::make_unique<c10::DebugInfoGuard>(c10::DebugInfoKind::PROFILER_STATE, log_);
    } else {
      allocator()->resetPeakStats(device_.index());
      start_ = allocated().current;
    }
  }
  int64_t live() const { return device_.is_cpu() ? log_->live : allocated().current - start_; }
  int64_t peak() const { return device_.is_cpu() ? log_->peak : allocated().peak - start_; }

 private:
  struct Log : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
      live += size;
      peak = std::max(peak, live);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t live = 0, peak = 0;
  };

  c10::DeviceAllocator* allocator() const { return c10::getDeviceAllocator(device_.type()); }
  c10::CachingAllocator::Stat allocated() const {
    return allocator()->getDeviceStats(device_.index()).allocated_bytes[0];
  }

  at::Device device_;
  std::shared_ptr<Log> log_;
  std::unique_ptr<c10::DebugInfoGuard> guard_;
  int64_t start_ = 0;
};

/// How many operators that compute or move values a call runs, in any thread, as a GPU's backward
/// pass has one of its own: views, allocations and wrappers do not count. On CUDA this is the
/// number of kernels but for a few that are fused.
template <typename Call>
int64_t count_kernels(const Call& call) {
  static const std::set<std::string> counted{"aten::mm",
                                             "aten::addmm",
                                             "aten::addmm_",
                                             "aten::bmm",
                                             "aten::baddbmm",
                                             "aten::baddbmm_",
                                             "aten::add",
                                             "aten::add_",
                                             "aten::mul",
                                             "aten::mul_",
                                             "aten::copy_",
                                             "aten::sum",
                                             "aten::sub",
                                             "aten::div",
                                             "aten::cat",
                                             "aten::fill_",
                                             "aten::zero_",
                                             "aten::stack",
                                             "aten::norm",
                                             "lightlora::add_low_rank_",
                                             "lightlora::low_rank_gradients"};
  static std::atomic<int64_t> count;
  count = 0;
  const auto handle = at::addGlobalCallback(at::RecordFunctionCallback(
      [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
        if (counted.count(function.name())) ++count;
        return nullptr;
      }));
  call();
  at::removeCallback(handle);
  return count;
}

/// The processor's name as Linux gives it.
inline std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

/// What a table of figures must begin with.
inline Json machine(at::Device device, int threads) {
  char date[32];
  const std::time_t time = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&time));
  Json result;
  result.add("date", date).add("processor", processor()).add("threads", threads);
  result.add("libtorch", TORCH_VERSION).add("device", device.str());
  result.add("clock", Clock(device, threads).name());
#if LIGHTLORA_HAS_CUDA
  if (device.is_cuda()) {
    const auto* properties = at::cuda::getDeviceProperties(device.index());
    int driver = 0;
    cudaDriverGetVersion(&driver);
    result.add("gpu", properties->name).add("cuda_driver", driver);
  }
#endif
  return result;
}

}  // namespace measure
