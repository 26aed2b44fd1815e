// SPDX-License-Identifier: Apache-2.0
// Starts without a driver, says so, and holds on to everything that the CUDA flavour adds.
#include <torch/cuda.h>

#include <iostream>

#include "support/distributed/engine.h"
#include "training/cuda_graph.h"

#if !LIGHTLORA_HAS_CUDA
#error "expected CUDA's headers and runtime to be found"
#endif

int main() {
  // Volatile, so that the linker has to find it.
  std::unique_ptr<distributed::Engine> (*volatile make_engine)(const distributed::Store&,
                                                               const distributed::Place&) =
      &distributed::make_nccl_engine;
  const bool records = training::use_cuda_graph("auto", {c10::kCUDA, 0});
  std::cout << "devices " << torch::cuda::device_count() << ", records " << records << ", exchanges "
            << (make_engine != nullptr) << "\n";
  return 0;
}
