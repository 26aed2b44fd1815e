// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/muon.h"

#include <ATen/ATen.h>

namespace pretraining {

at::Tensor orthogonalized(const at::Tensor& matrix, at::ScalarType compute_dtype) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;  // the products are then of the shorter side
  x = (x / (x.norm() + 1e-7)).to(compute_dtype);
  for (int i = 0; i < 5; ++i) {
    const at::Tensor square = x.mm(x.t());
    x = at::addmm(x, at::addmm(square, square, square, b, c), x, a);
  }
  return (tall ? x.t() : x).to(at::kFloat);
}

}  // namespace pretraining
