// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace sd {

/// value * gelu(gate), with the exact gelu, of (value, gate) side by side. On a CPU in fp32 or bf16
/// one pass over memory, and one for the gradient, which needs nothing but the input; otherwise,
/// and where the gradient is differentiated again, LibTorch's operators.
/// Shapes: both (..., 2 C), result (..., C)
at::Tensor geglu(const at::Tensor& both);

}  // namespace sd
