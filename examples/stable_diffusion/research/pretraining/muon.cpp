// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace pretraining {
namespace {

constexpr double kMomentum = 0.95;

}  // namespace

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

Muon::Muon(const training::ParameterBank::Slice& slice, double decay, at::ScalarType compute_dtype)
    : shapes_(slice.shapes),
      decay_(decay),
      compute_dtype_(compute_dtype),
      momentum_(track("momentum", at::zeros_like(slice.values))) {}

void Muon::step(const at::Tensor& values, const at::Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  momentum_.mul_(kMomentum).add_(gradients);
  const at::Tensor ahead = gradients.add(momentum_, kMomentum);
  values.mul_(1 - learning_rate * decay_);
  int64_t start = 0;
  for (const auto& shape : shapes_) {
    const int64_t rows = shape[0], count = c10::multiply_integers(shape), columns = count / rows;
    const auto direction =
        orthogonalized(ahead.narrow(0, start, count).view({rows, columns}), compute_dtype_);
    const double size = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
    values.narrow(0, start, count).view({rows, columns}).add_(direction, -learning_rate * size);
    start += count;
  }
}

}  // namespace pretraining
