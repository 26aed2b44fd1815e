// SPDX-License-Identifier: Apache-2.0
// PNG as PIL's convert("RGB") gives it: alpha is dropped, 16-bit channels keep their upper byte, no
// gamma.
#include <c10/util/Exception.h>
#include <png.h>

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

}  // namespace

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
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(reader.png, reader.info, &size, &exif) != 0 && exif != nullptr) {
    Bytes block = {'E', 'x', 'i', 'f', 0, 0};
    block.insert(block.end(), exif, exif + size);
    result.orientation = exif_orientation(block.data(), block.size());
  }
  return result;
}

}  // namespace images::detail
