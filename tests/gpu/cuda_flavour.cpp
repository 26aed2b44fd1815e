// SPDX-License-Identifier: Apache-2.0
// A program that is linked with LibTorch's CUDA libraries, as the benchmarks are where a GPU is: what they name of
// CUDA must be found when it is linked, and again when it is loaded. Built on every machine with the headers.
#include <torch/cuda.h>

#include <iostream>

#include "common/measure.h"

int main() {
  const at::Device device = torch::cuda::is_available() ? at::Device(at::kCUDA, 0) : at::kCPU;
  const measure::Clock clock(device, /*threads=*/1);
  const double seconds = clock.time([] {});
  std::cout << measure::machine(device, /*threads=*/1).add("seconds", seconds).dump() << "\n";
  return seconds >= 0 ? 0 : 1;
}
