// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace pretraining {

/// Writes a sheet of pictures, `columns` in a row, each pixel as a square of `factor`.
/// Shapes: (N, 3, H, W) in [-1, 1], any floating dtype
void save_sheet(const std::string& path, const at::Tensor& pictures, int64_t columns,
                int64_t factor = 1);

/// Mean over the pictures of the peak signal-to-noise ratio in dB.
/// Equation: -10 log10(mean squared error), of values in [0, 1]
/// Shapes:   both (N, 3, H, W) in [-1, 1]; values of `pictures` are clamped to that
double mean_psnr(const at::Tensor& pictures, const at::Tensor& reference);

}  // namespace pretraining
