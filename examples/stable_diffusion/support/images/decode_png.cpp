// SPDX-License-Identifier: Apache-2.0
// PNG as PIL's convert("RGB") gives it: alpha is dropped, 16-bit channels keep their upper byte, no
// gamma.
#include <c10/util/Exception.h>
#include <png.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>

#include "support/images/decoders.h"
#include "support/images/png_memory.h"

namespace images::detail {

namespace {

/// Reads the header and asks libpng for 8-bit RGB rows.
bool read_header(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_info(reader.png, reader.info);
  png_set_strip_16(reader.png);
  // On a palette this also makes alpha of the tRNS chunk, which strip_alpha removes.
  png_set_palette_to_rgb(reader.png);
  if (!(png_get_color_type(reader.png, reader.info) & PNG_COLOR_MASK_COLOR)) {
    if (png_get_bit_depth(reader.png, reader.info) < 8) {
      png_set_expand_gray_1_2_4_to_8(reader.png);
    }
    png_set_gray_to_rgb(reader.png);
  }
  png_set_strip_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

/// Asks libpng for 8-bit RGBA rows; `has` tells whether the picture has transparency at all.
bool read_header_with_alpha(PngReader& reader, bool& has) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_info(reader.png, reader.info);
  has = (png_get_color_type(reader.png, reader.info) & PNG_COLOR_MASK_ALPHA) != 0 ||
        png_get_valid(reader.png, reader.info, PNG_INFO_tRNS) != 0;
  png_set_strip_16(reader.png);
  png_set_expand(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_add_alpha(reader.png, 0xFF, PNG_FILLER_AFTER);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return true;
}

bool read_rows(PngReader& reader, png_bytepp rows) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_image(reader.png, rows);
  return true;
}

/// Reads what follows the picture; a file that ends here is complete enough.
void read_rest(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return;
  png_read_end(reader.png, reader.info);
}

// "Raw profile type exif" as ImageMagick writes it: a name, a count, and digits in lines.
Bytes raw_profile(const std::string& text) {
  Bytes block;
  std::istringstream words(text);
  std::string word, digits;
  words >> word >> word;  // "exif", and the number of bytes
  while (words >> word) digits += word;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    block.push_back(static_cast<uint8_t>(std::strtoul(digits.substr(i, 2).c_str(), nullptr, 16)));
  }
  return block;
}

// Where PIL looks: the chunk, the text that came before there was a chunk, and XMP.
int orientation_of(PngReader& reader) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(reader.png, reader.info, &size, &exif) != 0 && exif != nullptr) {
    Bytes block = {'E', 'x', 'i', 'f', 0, 0};
    block.insert(block.end(), exif, exif + size);
    if (const int found = exif_orientation(block.data(), block.size()); found != 1) return found;
  }
  png_textp texts = nullptr;
  int count = 0, by_xmp = 1;
  png_get_text(reader.png, reader.info, &texts, &count);
  for (int i = 0; i < count; ++i) {
    const std::string key = texts[i].key;
    const auto length = std::max<std::size_t>(texts[i].text_length, texts[i].itxt_length);
    if (key != "Raw profile type exif" && key != "XML:com.adobe.xmp") continue;
    const std::string text(texts[i].text, length);
    if (key[0] == 'X') by_xmp = xmp_orientation(text);
    const Bytes block = key[0] == 'R' ? raw_profile(text) : Bytes();
    if (block.size() < 6) continue;
    if (const int found = exif_orientation(block.data(), block.size()); found != 1) return found;
  }
  return by_xmp;
}

}  // namespace

Image decode_png_alpha(const Bytes& bytes) {
  PngReader reader(bytes);
  bool has = false;
  TORCH_CHECK(read_header_with_alpha(reader, has), reader.message);
  if (!has) return {};
  const int64_t width = png_get_image_width(reader.png, reader.info);
  const int64_t height = png_get_image_height(reader.png, reader.info);
  check_size(width, height);
  Bytes rgba(static_cast<std::size_t>(width * height * 4));
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < height; ++y) rows.push_back(rgba.data() + y * width * 4);
  TORCH_CHECK(read_rows(reader, rows.data()), reader.message);
  return grey_of_alpha(rgba, width, height);
}

Decoded decode_png(const Bytes& bytes) {
  PngReader reader(bytes);
  TORCH_CHECK(read_header(reader), reader.message);
  const int64_t width = png_get_image_width(reader.png, reader.info);
  const int64_t height = png_get_image_height(reader.png, reader.info);
  check_size(width, height);
  TORCH_INTERNAL_ASSERT(static_cast<int64_t>(png_get_rowbytes(reader.png, reader.info)) ==
                        width * 3);
  Decoded result{Image(width, height)};
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < height; ++y) rows.push_back(result.image.row(y));
  TORCH_CHECK(read_rows(reader, rows.data()), reader.message);
  read_rest(reader);
  result.orientation = orientation_of(reader);
  return result;
}

}  // namespace images::detail
