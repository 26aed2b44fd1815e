// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace fake_cuda {

/// The kernel of nearly every operator of the dry device: results of the sizes that they would
/// have.
void run_on_shapes(const c10::OperatorHandle& op, torch::jit::Stack* stack);

/// The kernels of the device, for good.
void register_dry_kernels();

void count_operations(double operations);

}  // namespace fake_cuda
