// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/detail/choose_path.h>
#include <lightlora/detail/packed_weight.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace lightlora {

/// Linear layer with a low-rank delta, without ever forming the gradient of the frozen weight.
/// Equation: y = x (weight + scale * up * down)^T + bias
/// Shapes:   x (..., in), weight (out, in), down (r, in), up (out, r), bias (out), y (..., out)
/// Dtypes:   x, weight and bias of one floating dtype (or under autocast, which is honoured); the
///           factors may have a wider one and get their gradients in it
/// Errors:   c10::Error with both shapes, and `name` if given, if the last size of x is not `in`
/// Derivatives of any order are right: a backward pass that autograd records is made of LibTorch's
/// own operators over the arguments.
/// `path` is the way to compute it that `choose_path` has chosen among those with factors, which
/// differ by rounding only; `packed` the weight in the CPU kernels' layout, for the path of that name.
at::Tensor low_rank_linear(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, const Factors& factors,
                           double scale, std::string_view name = "low_rank_linear",
                           Path path = Path::bypass, const PackedWeight* packed = nullptr);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/low_rank_linear-inl.h>
#endif
