// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>

#include <vector>

namespace lightlora {

/// A low-rank weight delta without its scale: delta = scale * up * down.
/// Shapes: down (r, in), up (out, r)
struct Factors {
  at::Tensor down;  ///< (r, in)
  at::Tensor up;    ///< (out, r)
};

/// One set of factors for the sum of several: the ranks add up, the scales go into `up`.
/// Shapes: as in `Factors`, with r the sum of the ranks
Factors concatenate(const std::vector<Factors>& factors, const std::vector<double>& scales);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/factors.h>
#endif
