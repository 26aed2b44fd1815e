// SPDX-License-Identifier: Apache-2.0
// CUDA graphs, in the part of the programs that is loaded where a GPU is.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>

#include "support/cuda/graph_recorder.h"

namespace cuda {

namespace {

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

}  // namespace

}  // namespace cuda

extern "C" cuda::GraphRecorder* lightlora_make_graph_recorder(c10::Device device) {
  return new cuda::StreamRecorder(device);
}
