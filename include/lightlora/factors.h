// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <cstddef>
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
inline Factors concatenate(const std::vector<Factors>& factors, const std::vector<double>& scales) {
  std::vector<at::Tensor> downs;
  std::vector<at::Tensor> ups;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    downs.push_back(factors[i].down);
    ups.push_back(factors[i].up * scales[i]);
  }
  return {at::cat(downs, 0), at::cat(ups, 1)};
}

}  // namespace lightlora
