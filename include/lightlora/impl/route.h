// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/route.h>

namespace lightlora {

LIGHTLORA_INLINE Route choose_route(int64_t rows, const at::Tensor& weight, bool thin_kernels) {
  if (at::isReducedFloatingType(weight.scalar_type())) return Route::bypass;
  const auto out = static_cast<double>(weight.size(0));
  const auto in = static_cast<double>(weight.size(1));
  const double kappa = thin_kernels ? 6.0 : 2.0;
  const bool merge = static_cast<double>(rows) * (in + out) > kappa * in * out;
  return merge ? Route::merged : Route::bypass;
}

}  // namespace lightlora
