// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/factors.h>

#include <ATen/ATen.h>

#include <cstddef>

namespace lightlora {

LIGHTLORA_INLINE Factors concatenate(const std::vector<Factors>& factors,
                                     const std::vector<double>& scales) {
  std::vector<at::Tensor> downs;
  std::vector<at::Tensor> ups;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    downs.push_back(factors[i].down);
    ups.push_back(factors[i].up * scales[i]);
  }
  return {at::cat(downs, 0), at::cat(ups, 1)};
}

}  // namespace lightlora
