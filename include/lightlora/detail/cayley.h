// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_solve_ex.h>

#include <tuple>

namespace lightlora::detail {

/// The rotations (1 - Q)^-1 (1 + Q) of skew-symmetric matrices Q; the two factors commute.
/// `at::linalg_solve` would read an error code in each call: a wait for the GPU, which a CUDA graph
/// cannot record. There is no error: Q's eigenvalues are imaginary, so 1 - Q has an inverse.
/// Shapes: (..., b, b)
inline at::Tensor cayley_transform(const at::Tensor& skew) {
  const at::Tensor one = at::eye(skew.size(-1), skew.options());
  return std::get<0>(at::linalg_solve_ex(one - skew, one + skew));
}

/// COFT's bound: matrices whose norm, taken over all of them, is larger are scaled down to it; 0
/// sets none.
inline at::Tensor within_norm(const at::Tensor& skew, double bound) {
  return bound > 0 ? skew * (bound / (skew.norm() + 1e-8)).clamp_max(1.0) : skew;
}

}  // namespace lightlora::detail
