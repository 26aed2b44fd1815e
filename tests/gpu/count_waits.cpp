// SPDX-License-Identifier: Apache-2.0
// Counts how often a program waits for a real GPU, as the simulated one does for itself: preloaded
// under an unchanged program, it turns LibTorch's synchronisation debug mode on and takes the place
// of the function that would warn. FAKE_CUDA_COUNTS=<file> makes it write what it counted.
#include <c10/cuda/CUDAFunctions.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace {

std::atomic<long> waits{0};

struct Counter {
  Counter() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_WARN); }
  ~Counter() {
    const char* path = std::getenv("FAKE_CUDA_COUNTS");
    std::FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (file == nullptr) return;
    std::fprintf(file, "{\"wait_total\": %ld, \"waits\": {\"synchronisation\": %ld}}\n",
                 waits.load(), waits.load());
    std::fclose(file);
  }
} counter;

}  // namespace

namespace c10::cuda {

void warn_or_error_on_sync() { ++waits; }

}  // namespace c10::cuda
