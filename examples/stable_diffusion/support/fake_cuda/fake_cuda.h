// SPDX-License-Identifier: Apache-2.0
// A CUDA device without a GPU: libfake_cuda.so takes the places that libtorch_cuda.so would take in
// libtorch_cpu (hooks, allocator, guard, generators, kernels), so that tensors, autograd and
// unchanged programs believe in two CUDA devices. Kernels are the CPU's own. What runs on it is
// *simulated*: it shows misplaced tensors, touched pointers, needless waits and wrong control flow,
// not the numbers, the speed or the races of a real GPU.
//
// Programs get it with LD_PRELOAD=libfake_cuda.so; tests link it and may ask what the functions
// below say.
#pragma once
#include <cstdint>
#include <map>
#include <string>

namespace fake_cuda {

/// Two, so that a tensor or generator of the wrong index is seen.
inline constexpr int kDeviceCount = 2;

/// What ran since the start or the last `reset_counts`, in all threads.
struct Counts {
  std::map<std::string, int64_t> kernels;  ///< operator, such as "add.Tensor", to its calls
  std::map<std::string, int64_t> waits;    ///< what made the host wait for the device, to how often
  int64_t uploads = 0;                     ///< copies from the host, also those that do not wait
  int64_t downloads = 0;                   ///< copies to the host

  int64_t kernel_total() const;
  int64_t wait_total() const;
  /// One JSON object; also what FAKE_CUDA_COUNTS=<file> makes a program write when it ends.
  std::string json() const;
};

Counts counts();
void reset_counts();

/// Bytes that live tensors hold on a device, and the most since `reset_peak`.
int64_t live_bytes(int device = 0);
int64_t peak_bytes(int device = 0);
void reset_peak(int device = 0);

/// Prints device and stack when host code touches device memory, before that ends the process. It
/// is so from the start, but a test framework may have handlers of its own.
void report_host_accesses();

}  // namespace fake_cuda
