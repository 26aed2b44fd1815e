// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "support/images/image.h"

namespace images {

/// The picture as a model takes it: (3, height, width), fp32 on the CPU, 0..255 mapped to [-1, 1]
/// by the same fp32 operations as torchvision's ToTensor and Normalize([0.5], [0.5]).
at::Tensor to_tensor(const Image& image);

/// The picture of a model's output: clamp(x / 2 + 0.5, 0, 1) * 255, halves rounded to even, as
/// diffusers does it.
/// Shapes: (3, height, width) of any floating dtype on any device
/// Errors: c10::ValueError for another shape, c10::Error if a value is not finite
Image to_image(const at::Tensor& tensor);

}  // namespace images
