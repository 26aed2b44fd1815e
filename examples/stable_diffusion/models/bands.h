// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>

namespace sd {

// Layers over feature maps that are too large to be in memory several times: band of rows after
// band. Unlike tiles this changes nothing: normalisations see the whole map, and a convolution's
// band reads the rows beside it. It is for maps without gradients. Where weights are streamed, the
// maps lie in files as well, so that the peak of memory no longer grows with the picture.

/// How many rows of a map to take at a time; 0: all at once, for a map of up to 2^26 numbers (256
/// channels of 512 x 512 pixels) or one with gradients.
/// Shapes: x (B, C, H, W), of which `channels` are made
int64_t rows_of_band(const at::Tensor& x, int64_t channels);

/// conv(silu(norm(x))) for a convolution of 3 x 3 that keeps the size.
/// Shapes: x (B, C, H, W), result (B, C', H, W)
at::Tensor norm_silu_conv(torch::nn::GroupNorm& norm, torch::nn::Conv2d& conv, const at::Tensor& x,
                          int64_t rows);

/// x += shortcut(added), of 1 x 1; without a shortcut x += added. Returns x.
at::Tensor add_shortcut(const at::Tensor& x, torch::nn::Conv2d& shortcut, const at::Tensor& added,
                        int64_t rows);

/// conv(x with each pixel twice in each direction).
/// Shapes: x (B, C, H, W), result (B, C', 2 H, 2 W)
at::Tensor enlarge_conv(torch::nn::Conv2d& conv, const at::Tensor& x, int64_t rows);

}  // namespace sd
