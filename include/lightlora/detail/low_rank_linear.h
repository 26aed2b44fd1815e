// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/detail/packed_weight.h>
#include <lightlora/options.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace lightlora {

/// What `Route::automatic` means for one shape. Both routes need the two small gradients; beyond
/// them the bypass reads and writes rows * (in + out) elements and the merged weight twice
/// in * out, so that merging wins from rows = kappa * in * out / (in + out) on, whatever the rank.
/// kappa is 2 from the count of elements (ATen's out-of-place sum copies the weight first) and 6
/// where the bypass is one pass over memory, as measured with the CPU kernels of small ranks.
/// Half-precision weights are never merged while training: early updates would vanish in rounding.
/// Shapes: rows is the product of x's leading sizes, weight (out, in)
Route choose_route(int64_t rows, const at::Tensor& weight, bool thin_kernels);

/// Linear layer with a low-rank delta, without ever forming the gradient of the frozen weight.
/// Equation: y = x (weight + scale * up * down)^T + bias
/// Shapes:   x (..., in), weight (out, in), down (r, in), up (out, r), bias (out), y (..., out)
/// Dtypes:   x, weight and bias of one floating dtype (or under autocast, which is honoured); the
///           factors may have a wider one and get their gradients in it
/// Errors:   c10::Error with both shapes, and `name` if given, if the last size of x is not `in`
/// `route` forces one way of computing it; the routes differ by rounding only. `packed` may hold the
/// weight in the CPU kernels' layout; it is used where it is usable, and not on the merged route.
at::Tensor low_rank_linear(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, const Factors& factors,
                           double scale, std::string_view name = "low_rank_linear",
                           Route route = Route::automatic, const PackedWeight* packed = nullptr);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/low_rank_linear-inl.h>
#endif
