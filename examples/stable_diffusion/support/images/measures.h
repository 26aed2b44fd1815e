// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string>
#include <vector>

#include "support/images/image.h"

namespace images {

/// The colour behind a subject.
struct Background {
  std::array<float, 3> colour;  ///< red, green, blue in [0, 1]: the median of the 3-pixel border
  std::string name;             ///< the nearest of the twelve names that the captions use
};

/// Which background a picture has: does the prompt still decide it? A picture that is not 64x64 is
/// resized (Lanczos) first, here and below, since the border is counted in pixels.
Background background(const Image& image);

/// What stands out from the background: the pixels that differ from it by more than 0.14 in some
/// channel, smoothed, cut out as a square and resampled to 24x24 in premultiplied RGB and mask.
/// Shapes: (2304) fp32, of length 1; zeros if fewer than 12 pixels differ
at::Tensor subject_vector(const Image& image);

/// The same vector of a picture with its own alpha channel, such as an emoji's bitmap.
/// Shapes: premultiplied (4, H, W), red, green, blue (times alpha) and alpha in [0, 1]; result
/// (2304)
at::Tensor reference_vector(const at::Tensor& premultiplied);

/// The same vector of every emoji of the reference set, to tell which one a picture resembles.
class EmojiVectors {
 public:
  /// Reads examples/stable_diffusion/assets/measures/emoji.safetensors.
  /// Errors: c10::Error if the file is missing or is not such a file
  explicit EmojiVectors(const std::string& path);

  const std::vector<std::string>& names() const { return names_; }

  /// Cosine of a subject_vector with every emoji's vector.
  /// Shapes: (2304) to (number of emoji)
  at::Tensor cosines(const at::Tensor& vector) const;

  struct Match {
    double cosine;  ///< with the emoji asked for
    int64_t rank;   ///< how many others are at least as similar; 0 is best
  };
  /// How much a picture's subject resembles one emoji, such as "teddy bear".
  /// Errors: c10::ValueError if there is no emoji of this name
  Match match(const at::Tensor& vector, const std::string& name) const;

 private:
  std::vector<std::string> names_;
  at::Tensor vectors_;  // (number of emoji, 2304) fp32, rows of length 1
};

/// Whether pictures show the subject, and whether their prompts still decide the background.
struct Fidelity {
  double cosine = 0;                ///< mean with the emoji that the subject is
  int64_t median_rank = 0;          ///< of that emoji among all; 0 is best
  int64_t followed = 0, asked = 0;  ///< backgrounds as asked, and prompts that asked for one
};

/// Measures pictures of prompts such as "... a blue background"; pictures[i] is of prompts[i].
/// Errors: c10::ValueError if there are no pictures or not as many prompts; those of `match`
Fidelity fidelity(const EmojiVectors& emoji, const std::string& name,
                  const std::vector<Image>& pictures, const std::vector<std::string>& prompts);

}  // namespace images
