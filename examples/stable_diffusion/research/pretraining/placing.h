// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace pretraining {

/// The square around what stands out from a picture's background, as shares of the frame.
struct SubjectSquare {
  double x = 0, y = 0;  ///< its middle
  double side = 0;      ///< 0: nothing stands out

  /// Which of the nine places of place_phrases() it is in, by the room that its size leaves.
  int64_t place() const;
};

/// Finds the square that holds the middle 98% of the pixels that differ from the border's median by
/// more than 0.14 in some channel, along each axis (as images::subject_vector cuts it out).
/// Shapes: (3, H, W) in [-1, 1]
SubjectSquare subject_square(const at::Tensor& picture);

/// The same of an emoji's bitmap: how much of its own square the emoji fills.
/// Shapes: (4, H, W) uint8, the last channel alpha
SubjectSquare bitmap_square(const at::Tensor& bitmap);

}  // namespace pretraining
