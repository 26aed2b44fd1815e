// SPDX-License-Identifier: Apache-2.0
#include "training/cuda_graph.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <iostream>
#include <map>
#include <utility>

#if LIGHTLORA_HAS_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace training {

namespace {

#if LIGHTLORA_HAS_CUDA

// What all recordings of a device share. Each memory pool and each stream would keep the
// activations of a batch for itself; one after the other they can have the same, as nothing in them
// outlasts a replay.
struct SharedByRecordings {
  explicit SharedByRecordings(c10::Device device)
      : stream(at::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        pool(at::cuda::graph_pool_handle()) {}

  static SharedByRecordings& of(c10::Device device) {
    static std::map<c10::DeviceIndex, SharedByRecordings> all;
    return all.try_emplace(device.index(), device).first->second;
  }

  at::cuda::CUDAStream stream;
  at::cuda::MempoolId_t pool;
  bool warm = false;
};

class StreamRecorder final : public GraphRecorder {
 public:
  explicit StreamRecorder(c10::Device device)
      : shared_(SharedByRecordings::of(device)), warm_ups_(shared_.warm ? 1 : 2) {}

  // Autograd's buffers and cuBLAS's workspaces settle in the first runs.
  int warm_ups() const override { return warm_ups_; }

  void warm_up(const std::function<void()>& work) override {
    // What other streams keep for later is of no use to this one.
    if (!shared_.warm) c10::cuda::CUDACachingAllocator::emptyCache();
    on_stream(work);
    shared_.warm = true;
  }

  void record(const std::function<void()>& work) override {
    // While a capture is under way the allocator gives nothing back, so it would run out of memory
    // beside what the warm-up has left.
    shared_.stream.synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    on_stream([&] {
      // Other threads, such as those of the heartbeat, may go on calling CUDA.
      graph_.capture_begin(shared_.pool, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        abandon();
        throw;
      }
      graph_.capture_end();
    });
  }

  void replay() override { graph_.replay(); }

 private:
  void on_stream(const std::function<void()>& work) {
    const auto outside = at::cuda::getCurrentCUDAStream();
    shared_.stream.synchronize();
    outside.synchronize();
    {
      const c10::cuda::CUDAStreamGuard guard(shared_.stream);
      work();
    }
    shared_.stream.synchronize();
  }

  // Frees stream and allocator from a capture that will not end well.
  void abandon() {
    try {
      graph_.capture_end();
    } catch (const std::exception&) {  // the error that matters is under way already
    }
    graph_.reset();
    static_cast<void>(cudaGetLastError());
  }

  SharedByRecordings& shared_;
  int warm_ups_;
  at::cuda::CUDAGraph graph_;
};

GraphRecorder* make_own_recorder(c10::Device device) { return new StreamRecorder(device); }

#endif

using MakeRecorder = GraphRecorder* (*)(c10::Device);

MakeRecorder find_recorder() {
  if (void* found = dlsym(RTLD_DEFAULT, kGraphRecorderSymbol)) {
    return reinterpret_cast<MakeRecorder>(found);
  }
#if LIGHTLORA_HAS_CUDA
  return &make_own_recorder;
#else
  return nullptr;
#endif
}

}  // namespace

bool use_cuda_graph(std::optional<bool> wanted, c10::Device device) {
  const bool possible = device.is_cuda() && find_recorder() != nullptr;
  TORCH_CHECK(!wanted.value_or(false) || possible,
              "--cuda_graph on: expected a GPU and a program built with ",
              "the CUDA toolkit's headers, got ", device,
              "; hint: leave it at auto, or build with `cmake --preset cuda`");
  return possible && wanted.value_or(true);
}

CudaGraph::CudaGraph(std::function<void()> work, c10::Device device, bool record,
                     OnFailure on_failure)
    : work_(std::move(work)), on_failure_(on_failure) {
  const auto make = record && device.is_cuda() ? find_recorder() : nullptr;
  if (make) recorder_.reset(make(device));
}

void CudaGraph::run() {
  if (!recorder_) return work_();
  if (!recorded_) {
    if (calls_++ < recorder_->warm_ups()) return recorder_->warm_up(work_);
    record();
    if (!recorded_) return work_();
  }
  recorder_->replay();
}

void CudaGraph::record() {
  try {
    recorder_->record(work_);
    recorded_ = true;
  } catch (const std::exception& error) {
    if (on_failure_ == OnFailure::fail) throw;
    recorder_.reset();
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    std::cout << "notice: this step cannot be recorded as a CUDA graph and runs as it is: "
              << (torch_error ? torch_error->what_without_backtrace() : error.what()) << "\n";
  }
}

}  // namespace training
