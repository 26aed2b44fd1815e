// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace images {

/// Red, green and blue, 0 to 255.
using Colour = std::array<uint8_t, 3>;

/// A picture in memory, 8 bits per channel.
/// Layout: pixels[(y * width + x) * 3 + channel], channels red, green, blue; row 0 is at the top
struct Image {
  Image() = default;
  /// Errors: c10::ValueError unless both sizes are positive
  Image(int64_t width, int64_t height, Colour colour = {0, 0, 0});

  bool empty() const { return pixels.empty(); }
  uint8_t* row(int64_t y) { return pixels.data() + y * width * 3; }
  const uint8_t* row(int64_t y) const { return pixels.data() + y * width * 3; }

  int64_t width = 0, height = 0;
  std::vector<uint8_t> pixels;
};

bool operator==(const Image& a, const Image& b);
inline bool operator!=(const Image& a, const Image& b) { return !(a == b); }

/// The rectangle whose upper left corner is (left, top).
/// Errors: c10::ValueError if it is empty or not inside the picture
Image crop(const Image& image, int64_t left, int64_t top, int64_t width, int64_t height);

/// Where the middle part of a length begins; an odd rest is split as torchvision's CenterCrop does,
/// halves to even.
int64_t centre_offset(int64_t whole, int64_t part);

/// The middle of the picture, as `centre_offset` places it.
/// Errors: as crop
Image crop_centre(const Image& image, int64_t width, int64_t height);

/// Left and right exchanged.
Image flip_horizontally(const Image& image);

/// Turned upright according to the EXIF tag Orientation, as PIL's ImageOps.exif_transpose does it:
/// 2 mirrored, 3 turned by 180 degrees, 4 upside down, 5 transposed, 6 turned right by 90 degrees,
/// 7 transposed and turned by 180 degrees, 8 turned left by 90 degrees; any other value is no
/// change.
Image apply_orientation(const Image& image, int orientation);

/// Copies `source` into `target` with its upper left corner at (left, top), each pixel as a square
/// of `factor` pixels; what lies outside the target is left out.
void paste(Image& target, const Image& source, int64_t left, int64_t top, int64_t factor = 1);

/// Fills a rectangle; what lies outside the picture is left out.
void fill(Image& image, int64_t left, int64_t top, int64_t width, int64_t height, Colour colour);

}  // namespace images
