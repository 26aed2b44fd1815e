// SPDX-License-Identifier: Apache-2.0
// Starts without a driver, says so, and holds on to everything that the CUDA flavour adds.
#include <torch/cuda.h>

#include <iostream>

#include "support/distributed/backend.h"
#include "training/cuda_graph.h"

#if !LIGHTLORA_HAS_CUDA
#error "expected CUDA's headers and runtime to be found"
#endif

int main() {
  // Volatile, so that the linker has to find it.
  std::unique_ptr<distributed::Backend> (*volatile make_backend)(
      const distributed::Store&, const distributed::WorldInfo&) = &distributed::make_nccl_backend;
  const bool records = training::use_cuda_graph(std::nullopt, {c10::kCUDA, 0});
  std::cout << "devices " << torch::cuda::device_count() << ", records " << records
            << ", exchanges " << (make_backend != nullptr) << "\n";
  return 0;
}
