// SPDX-License-Identifier: Apache-2.0
#include "support/images/image.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace images {

Image::Image(int64_t width, int64_t height, Colour colour) : width(width), height(height) {
  TORCH_CHECK_VALUE(width > 0 && height > 0, "images::Image: expected a positive size, got ", width,
                    "x", height);
  pixels.resize(static_cast<std::size_t>(width * height * 3));
  fill(*this, 0, 0, width, height, colour);
}

bool operator==(const Image& a, const Image& b) {
  return a.width == b.width && a.height == b.height && a.pixels == b.pixels;
}

Image crop(const Image& image, int64_t left, int64_t top, int64_t width, int64_t height) {
  TORCH_CHECK_VALUE(width > 0 && height > 0 && left >= 0 && top >= 0 &&
                        left + width <= image.width && top + height <= image.height,
                    "images::crop: expected a rectangle inside ", image.width, "x", image.height,
                    ", got ", width, "x", height, " at (", left, ", ", top, ")");
  Image result(width, height);
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* source = image.row(top + y) + left * 3;
    std::copy(source, source + width * 3, result.row(y));
  }
  return result;
}

int64_t centre_offset(int64_t whole, int64_t part) {
  // Python's round: halves go to the even neighbour.
  return static_cast<int64_t>(std::nearbyint(static_cast<double>(whole - part) / 2));
}

Image crop_centre(const Image& image, int64_t width, int64_t height) {
  return crop(image, centre_offset(image.width, width), centre_offset(image.height, height), width,
              height);
}

Image flip_horizontally(const Image& image) { return apply_orientation(image, /*orientation=*/2); }

Image apply_orientation(const Image& image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const bool transposed = orientation >= 5;
  Image result = transposed ? Image(image.height, image.width) : Image(image.width, image.height);
  // Where the result's pixel (x, y) comes from, after exchanging x and y if transposed.
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  for (int64_t y = 0; y < result.height; ++y) {
    uint8_t* out = result.row(y);
    for (int64_t x = 0; x < result.width; ++x, out += 3) {
      int64_t sx = transposed ? y : x, sy = transposed ? x : y;
      if (from_right) sx = image.width - 1 - sx;
      if (from_below) sy = image.height - 1 - sy;
      std::copy_n(image.row(sy) + sx * 3, 3, out);
    }
  }
  return result;
}

void paste(Image& target, const Image& source, int64_t left, int64_t top, int64_t factor) {
  const int64_t x_begin = std::max<int64_t>(left, 0);
  const int64_t x_end = std::min(target.width, left + source.width * factor);
  const int64_t y_end = std::min(target.height, top + source.height * factor);
  for (int64_t y = std::max<int64_t>(top, 0); y < y_end; ++y) {
    const uint8_t* from = source.row((y - top) / factor);
    uint8_t* to = target.row(y);
    for (int64_t x = x_begin; x < x_end; ++x) {
      std::copy_n(from + (x - left) / factor * 3, 3, to + x * 3);
    }
  }
}

void fill(Image& image, int64_t left, int64_t top, int64_t width, int64_t height, Colour colour) {
  const int64_t x_end = std::min(image.width, left + width);
  const int64_t y_end = std::min(image.height, top + height);
  for (int64_t y = std::max<int64_t>(top, 0); y < y_end; ++y) {
    for (int64_t x = std::max<int64_t>(left, 0); x < x_end; ++x) {
      std::copy(colour.begin(), colour.end(), image.row(y) + x * 3);
    }
  }
}

}  // namespace images
