// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/normalization.h>

namespace sd {

/// A GroupNorm with the activation behind it, silu(norm(x)), or without. On a CPU in fp32 or bf16
/// one pass over memory behind that for the statistics, in either memory format, and the same for
/// the gradient, which needs nothing but the input and the statistics; otherwise, and where the
/// gradient is differentiated again, LibTorch's operators.
/// Statistics are added up in fp32 over at most a thousand numbers and in fp64 from there on, in an
/// order that does not depend on the threads.
/// Shapes: x (B, C, H, W) in either memory format, result the same
at::Tensor group_norm(torch::nn::GroupNormImpl& norm, const at::Tensor& x);
at::Tensor group_norm_silu(torch::nn::GroupNormImpl& norm, const at::Tensor& x);

/// group_norm_silu(x) where nothing else holds `fresh`: in its memory if autograd allows.
at::Tensor group_norm_silu_of(torch::nn::GroupNormImpl& norm, at::Tensor fresh);

}  // namespace sd
