// SPDX-License-Identifier: Apache-2.0
// What the kernels of the device have in common: facts about operators, and counting.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace fake_cuda {

/// Whether a CUDA kernel of this name takes a 0-dimensional CPU tensor beside device tensors, as
/// the arithmetic of two tensors does. (A tensor of indices may be on the CPU for some others.)
bool takes_cpu_scalar(const std::string& name);
bool takes_cpu_indices(const std::string& name);

/// Whether the host reads back what the kernel computed before it goes on, as for a size.
bool waits_for_result(const std::string& name);

/// Operators without a CPU kernel of their own that still go through the CPU, as its layout and
/// order of sums differ from the composite one that a device would get.
const std::vector<std::string>& composite_operators();

/// Whether an operator with a CPU kernel has one for CUDA as well.
bool exists_on_cuda(const std::string& name);

void count_kernel(const c10::OperatorName& name);
void count_wait(const std::string& reason);
void count_upload();
void count_download();

}  // namespace fake_cuda
