// SPDX-License-Identifier: Apache-2.0
// A CUDA graph, simulated: kernels are noted while some work runs, what they did is undone, and a
// replay runs them again on the same memory. What CUDA forbids during a capture throws here too.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <functional>

#include "support/fake_cuda/device.h"

namespace fake_cuda {

/// The following do nothing unless kernels are being recorded. A kernel is about to write to
/// `tensor`:
void note_write(const at::Tensor& tensor);
/// Device memory is being handed out. The number of the recording, or 0.
uint64_t note_allocation(void* address);
/// A kernel ran; `again` does what it did:
void note_kernel(std::function<void()> again);

/// Brings what a kernel has computed again to where it lay when it was recorded.
void write_back(const c10::IValue& recorded, const c10::IValue& again);

}  // namespace fake_cuda
