// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "training/optimizer.h"

namespace pretraining {

/// The nearest semi-orthogonal matrix, roughly: singular values become about 1.
/// Equation: five steps of the Newton-Schulz iteration x -> a x + (b xx' + c (xx')^2) x of Muon
///           (Jordan et al. 2024), which ends between 0.7 and 1.2
/// Shapes:   (rows, columns), any; zeros stay zeros
/// Dtypes:   computed in `compute_dtype`, in fp32 where one side is much the longer and that costs
///           less; result in fp32
/// Error:    relative to the same steps in fp64 below 1e-3 in fp32, and 2e-2 and more in bf16, which
///           loses the smallest singular values
at::Tensor orthogonalized(const at::Tensor& matrix, at::ScalarType compute_dtype);

/// The momentum orthogonalised, so that a step moves every direction of a matrix alike.
/// Equation: value -= rate (0.2 sqrt(max(rows, columns)) orthogonalized(momentum) + decay value);
///           the factor gives the step AdamW's size (Liu et al. 2025, arXiv:2502.16982)
class Muon : public training::Optimizer {
 public:
  /// All parameters of the slice have two dimensions or more; the first are the rows.
  Muon(const training::ParameterBank::Slice& slice, double decay, at::ScalarType compute_dtype);
  void step(const at::Tensor& values, const at::Tensor& gradients, double learning_rate) override;

 private:
  std::vector<std::vector<int64_t>> shapes_;
  double decay_;
  at::ScalarType compute_dtype_;
  at::Tensor momentum_;
};

}  // namespace pretraining
