// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "support/images/image.h"

namespace images {

/// How a picture is resampled; all three are antialiased when shrinking.
enum class Filter { kBilinear, kBicubic, kLanczos };

/// The filter called "bilinear", "bicubic" or "lanczos", as diffusers' --image_interpolation_mode
/// has it.
/// Errors: c10::ValueError for any other name
Filter filter_by_name(const std::string& name);

/// Resampled to width x height, bit for bit as PIL's Image.resize: two passes, across and then
/// down, with 22-bit fixed-point weights and rounding to 8 bits between them.
/// Equation: out(x) = sum_i w(i) in(i),  w(i) ~ f((i + 0.5 - (x + 0.5) s) / max(s, 1)),  s = in /
///         out
/// Errors: c10::ValueError if the picture is empty or a new size is not positive
Image resize(const Image& image, int64_t width, int64_t height, Filter filter);

/// Resampled so that the shorter side has `size` pixels; the longer one is rounded down, as
/// torchvision's Resize(size) does.
Image resize_shorter_side(const Image& image, int64_t size, Filter filter);

}  // namespace images
