// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace fake_cuda {

/// The kernel of nearly every operator: checks what a CUDA kernel would check, runs the CPU's on
/// twins of the arguments, and brings the results to the device.
void run_on_twins(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace fake_cuda
