// SPDX-License-Identifier: Apache-2.0
#include "training/cuda_graph.h"

#include <c10/util/Exception.h>

#include <utility>

#if LIGHTLORA_HAS_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace training {

bool use_cuda_graph(std::optional<bool> wanted, c10::Device device) {
#if LIGHTLORA_HAS_CUDA
  const bool possible = device.is_cuda();
#else
  const bool possible = false;
#endif
  TORCH_CHECK(!wanted.value_or(false) || possible,
              "--cuda_graph on: expected a GPU and a program built with ",
              "the CUDA toolkit's headers, got ", device,
              "; hint: leave it at auto, or build with `cmake --preset cuda`");
  return possible && wanted.value_or(true);
}

#if LIGHTLORA_HAS_CUDA

// Autograd's buffers and cuBLAS's workspaces settle in the first runs, which must be on the stream
// that is recorded later.
struct CudaGraph::Recording {
  static constexpr int kWarmUp = 3;

  explicit Recording(c10::Device device)
      : stream(at::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  void run(const std::function<void()>& work) {
    if (recorded) return graph.replay();
    const auto outside = at::cuda::getCurrentCUDAStream();
    stream.synchronize();
    outside.synchronize();
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      if (calls++ < kWarmUp) {
        work();
      } else {
        // Other threads may go on calling CUDA: they decode and copy the next pictures.
        graph.capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
        work();
        graph.capture_end();
        recorded = true;
      }
    }
    stream.synchronize();
    if (recorded) graph.replay();  // recording runs nothing
  }

  at::cuda::CUDAStream stream;
  at::cuda::CUDAGraph graph;
  int calls = 0;
  bool recorded = false;
};

#else

struct CudaGraph::Recording {
  explicit Recording(c10::Device) {}
  void run(const std::function<void()>& work) { work(); }
  bool recorded = false;
};

#endif

CudaGraph::CudaGraph(std::function<void()> work, c10::Device device, bool record)
    : work_(std::move(work)), recording_(record ? std::make_unique<Recording>(device) : nullptr) {}

CudaGraph::~CudaGraph() = default;

void CudaGraph::run() { recording_ ? recording_->run(work_) : work_(); }

bool CudaGraph::recorded() const { return recording_ && recording_->recorded; }

}  // namespace training
