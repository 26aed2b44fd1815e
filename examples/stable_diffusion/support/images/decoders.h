// SPDX-License-Identifier: Apache-2.0
// One decoder per format, for load.cpp. Each takes a whole file and throws c10::Error with only the
// reason
// ("the file ends too early"); load.cpp adds the file's name and format.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/images/image.h"

namespace images::detail {

using Bytes = std::vector<uint8_t>;

/// A decoded picture that may still have to be turned upright.
struct Decoded {
  Image image;
  int orientation = 1;
  int64_t width = 0, height = 0;  ///< of the file, if the picture is a smaller one
};

/// With `least` above 0 at the smallest of 1, 1/2, 1/4 and 1/8 of its size at which its shorter side
/// has that many pixels.
Decoded decode_jpeg(const Bytes& bytes, int64_t least = 0);
Decoded decode_png(const Bytes& bytes);
Decoded decode_webp(const Bytes& bytes);
/// The alpha channel as grey; empty if there is none.
Image decode_png_alpha(const Bytes& bytes);
Image decode_webp_alpha(const Bytes& bytes);
Image decode_gif_alpha(const Bytes& bytes);
/// Whether a GIF's head gives its first picture a transparent colour.
bool gif_is_transparent(const Bytes& head);
/// BMP, GIF and TGA.
Decoded decode_other(const Bytes& bytes);
/// The fourth channel of RGBA pixels, as grey.
Image grey_of_alpha(const Bytes& rgba, int64_t width, int64_t height);
/// Whether stb_image takes the bytes for a TGA file.
bool is_tga(const Bytes& bytes);

/// Value of the tag Orientation in an EXIF block ("Exif\0\0" and a TIFF header), 1 if it has none.
int exif_orientation(const uint8_t* data, std::size_t size);

/// Value of tiff:Orientation in an XMP packet, 1 if it has none; PIL looks there last.
int xmp_orientation(const std::string& xmp);

/// Errors: c10::Error if a picture of this size would not be decoded: empty, or larger than 178
/// million pixels (PIL's limit), which a few bytes can claim and only a mistake or an attack does
void check_size(int64_t width, int64_t height);

}  // namespace images::detail
