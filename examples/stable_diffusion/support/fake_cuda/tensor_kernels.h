// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <torch/library.h>

#include <set>
#include <string>

namespace fake_cuda {

/// One kernel for every operator that has one on the CPU and one on a GPU, apart from those below
/// and the exceptions, which a flavour of the device brings itself.
void register_for_all(torch::Library& library, torch::CppFunction (*kernel)(),
                      const std::set<std::string>& except = {});

/// Operators that make tensors and views, which touch no memory.
void register_tensor_kernels(torch::Library& library);

}  // namespace fake_cuda
