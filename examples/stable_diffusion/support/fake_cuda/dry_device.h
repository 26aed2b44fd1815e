// SPDX-License-Identifier: Apache-2.0
// A CUDA device that computes nothing: kernels make tensors of the right sizes, and memory is
// addresses that nothing may touch. What runs on it takes a moment at any size, and is counted:
// kernels, waits for the device, multiplications, and memory as LibTorch's CUDA allocator would
// take it from a card.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace fake_cuda {

/// Makes the process believe in CUDA devices of this kind, for good.
/// Errors: c10::Error if LibTorch's own CUDA libraries are loaded
void start_dry_device();

/// The most bytes at a time, of the first device.
struct DryMemory {
  int64_t tensors = 0;
  int64_t taken = 0;   ///< from a card that has plenty
  int64_t needed = 0;  ///< from a card that has no more: what is kept for later is given back
};
DryMemory dry_memory();
/// From now on peaks are those of what follows.
void reset_dry_peaks();

/// Floating-point operations of matrix products, convolutions and attention so far.
double dry_operations();

/// Records what `work` launches. Its memory comes from a pool of its own, which stays taken.
class DryRecording {
 public:
  /// Work as it is, on the stream of recordings.
  static void warm_up(const std::function<void()>& work);
  void record(const std::function<void()>& work);
  /// Counts the kernels of the recording once more.
  void replay() const;

 private:
  std::map<std::string, int64_t> kernels_;
  double operations_ = 0;
};

}  // namespace fake_cuda
