// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace pretraining {
namespace {

constexpr double kMomentum = 0.95;
constexpr int kIterations = 5;
constexpr double a = 3.4445, b = -4.7750, c = 2.0315;

// x of m rows: each step is two products with its columns and one of m^3.
at::Tensor iterated(at::Tensor x) {
  for (int i = 0; i < kIterations; ++i) {
    const at::Tensor square = x.mm(x.t());
    x = at::addmm(x, at::addmm(square, square, square, b, c), x, a);
  }
  return x;
}

// The same of products of m^3 but for the first and the last: each step multiplies x by a polynomial
// of square = xx', hence square by that polynomial twice. In fp32, whatever x is to be computed in:
// rounding grows with the smallest singular values, eleven times in each step.
at::Tensor iterated_by_square(const at::Tensor& x) {
  at::Tensor square = x.mm(x.t()), all;
  for (int i = 0; i < kIterations; ++i) {
    const at::Tensor step = at::addmm(square, square, square, b, c);
    step.diagonal().add_(a);
    all = all.defined() ? step.mm(all) : step;
    if (i + 1 < kIterations) square = step.mm(square.mm(step));
  }
  return all.mm(x);
}

// Products of 34 m^3 + 4 m^2 n in fp32 against 10 m^3 + 20 m^2 n, which in half precision cost a CPU
// half as much, and a GPU so little that the first are never worth it.
bool goes_by_square(const at::Tensor& x, at::ScalarType compute_dtype) {
  const int64_t rows = x.size(0), columns = x.size(1);
  if (compute_dtype == at::kFloat) return 2 * columns > 3 * rows;
  return x.is_cpu() && columns > 5 * rows;
}

}  // namespace

at::Tensor orthogonalized(const at::Tensor& matrix, at::ScalarType compute_dtype) {
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;  // the products are then of the shorter side
  x = x / (x.norm() + 1e-7);
  x = goes_by_square(x, compute_dtype) ? iterated_by_square(x) : iterated(x.to(compute_dtype));
  return (tall ? x.t() : x).to(at::kFloat);
}

Muon::Muon(const training::ParameterBank::Slice& slice, double decay, at::ScalarType compute_dtype)
    : shapes_(slice.shapes),
      decay_(decay),
      compute_dtype_(compute_dtype),
      momentum_(track("momentum", at::zeros_like(slice.values))) {}

void Muon::step(const at::Tensor& values, const at::Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  at::Tensor momentum = momentum_;
  at::add_out(momentum, gradients, momentum_, kMomentum);  // in place: gradients + kMomentum * it
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
