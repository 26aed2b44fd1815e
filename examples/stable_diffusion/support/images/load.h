// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "support/images/image.h"

namespace images {

/// The picture in a file, upright and as RGB, as PIL's ImageOps.exif_transpose(...).convert("RGB")
/// gives it.
///
/// Reads JPEG (grey, YCbCr, RGB, CMYK), PNG (every colour type and depth), still WebP, BMP, TGA and
/// the first picture of a GIF, told apart by content, not by name (TGA, which has no signature, by
/// both). Transparency is dropped, not blended; 16-bit channels keep their upper 8 bits. Differs
/// from PIL: a 16-bit grey PNG keeps its greys (PIL clips them at 255 and returns almost white);
/// orientation is read from EXIF only, not from XMP; transparent pixels of a GIF have the
/// background colour.
/// Errors: c10::Error naming the file and what it looks like: missing, empty, text, truncated,
///         HEIC, ...
Image load_image(const std::string& path);

/// A picture, perhaps smaller than its file has it.
struct Loaded {
  Image image;
  int64_t width = 0, height = 0;  ///< of the file, upright
};

/// The same for a picture that will be made smaller: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its
/// size, as long as the shorter side keeps `least` pixels, in a fraction of the memory and time.
Loaded load_reduced(const std::string& path, int64_t least);

/// The same from memory; `name` stands for the file in messages.
Image decode_image(const std::vector<uint8_t>& bytes, const std::string& name);

/// What fills a given shape has to be stretched along both sides: of a line of pixels, gigabytes.
/// Errors: c10::Error, with `what` in front, for pictures more than 50 times as long as wide
void check_shape(const std::string& what, int64_t width, int64_t height);

/// Whether the file begins as a picture that load_image reads; false if it cannot be opened.
bool is_image_file(const std::string& path);

/// Whether the head of a PNG, WebP or GIF file says that the picture has transparency, which
/// `load_image` drops.
bool has_transparency(const std::string& path);

/// How opaque each pixel is, as a grey picture that is turned upright like the picture; an empty
/// one if the file has no transparency.
/// Errors: c10::Error naming the file if it is damaged
Image load_alpha(const std::string& path);

/// What a file that is no picture seems to be, for messages: "a text file", "a HEIC picture; hint:
/// convert it to PNG or JPEG first", ...
std::string describe_other_file(const std::string& path);

/// The entries of a folder, each list sorted by name.
struct Folder {
  std::vector<std::string> images;  ///< paths of the pictures
  std::vector<std::string>
      others;  ///< names of everything else: captions, hidden files, subfolders
};

/// Sorts the entries of a folder into pictures and others.
/// Errors: c10::Error if the folder is missing, or if a file that is called a picture (.png, .jpg,
/// .heic, ...) is none that can be read, since to leave it out silently would train on less than
/// was meant
Folder list_images(const std::string& folder);

}  // namespace images
