// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/options.h>

#include <cstdint>

namespace lightlora {

/// What `Route::automatic` means for one shape. Both routes need the two small gradients; beyond
/// them the bypass reads and writes rows * (in + out) elements and the merged weight twice
/// in * out, so that merging wins from rows = kappa * in * out / (in + out) on, whatever the rank.
/// kappa is 2 from the count of elements (ATen's out-of-place sum copies the weight first) and 6
/// where the bypass is one pass over memory, as measured with the CPU kernels of small ranks.
/// Half-precision weights are never merged while training: early updates would vanish in rounding.
/// Shapes: rows is the product of x's leading sizes, weight (out, in)
Route choose_route(int64_t rows, const at::Tensor& weight, bool thin_kernels);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/route.h>
#endif
