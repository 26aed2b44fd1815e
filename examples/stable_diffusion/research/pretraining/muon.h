// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace pretraining {

/// The nearest semi-orthogonal matrix, roughly: singular values become about 1.
/// Equation: five steps of the Newton-Schulz iteration x -> a x + (b xx' + c (xx')^2) x of Muon
///           (Jordan et al. 2024), which ends between 0.7 and 1.2
/// Shapes:   (rows, columns), any; zeros stay zeros
/// Dtypes:   computed in `compute_dtype`, result in fp32
at::Tensor orthogonalized(const at::Tensor& matrix, at::ScalarType compute_dtype);

}  // namespace pretraining
