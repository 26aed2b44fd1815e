// SPDX-License-Identifier: Apache-2.0
// The rarer formats through stb_image, and what all decoders share.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_BMP
#define STBI_ONLY_GIF
#define STBI_ONLY_TGA
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#include <c10/util/Exception.h>
#include <libexif/exif-data.h>
#include <stb/stb_image.h>

#include <algorithm>
#include <climits>
#include <memory>

#include "support/images/decoders.h"

namespace images::detail {

namespace {

int length(const Bytes& bytes) {
  return static_cast<int>(std::min<std::size_t>(bytes.size(), INT_MAX));
}

}  // namespace

bool is_tga(const Bytes& bytes) {
  stbi__context context;
  stbi__start_mem(&context, bytes.data(), length(bytes));
  return stbi__tga_test(&context) != 0;
}

Decoded decode_other(const Bytes& bytes) {
  int width = 0, height = 0, channels = 0;
  TORCH_CHECK(stbi_info_from_memory(bytes.data(), length(bytes), &width, &height, &channels) != 0,
              stbi_failure_reason());
  check_size(width, height);
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(bytes.data(), length(bytes), &width, &height, &channels,
                            /*req_comp=*/3),
      stbi_image_free);
  TORCH_CHECK(pixels != nullptr, stbi_failure_reason());
  Decoded result{Image(width, height)};
  std::copy_n(pixels.get(), result.image.pixels.size(), result.image.pixels.begin());
  return result;
}

int exif_orientation(const uint8_t* data, std::size_t size) {
  const std::unique_ptr<ExifData, void (*)(ExifData*)> exif(exif_data_new(), exif_data_unref);
  if (!exif) return 1;
  // As it stands in the file: libexif would otherwise repair entries of the wrong type.
  exif_data_unset_option(exif.get(), EXIF_DATA_OPTION_FOLLOW_SPECIFICATION);
  exif_data_load_data(exif.get(), data, static_cast<unsigned int>(size));
  const ExifEntry* entry = exif_content_get_entry(exif->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION);
  if (!entry || entry->format != EXIF_FORMAT_SHORT || entry->size < 2) return 1;
  return exif_get_short(entry->data, exif_data_get_byte_order(exif.get()));
}

void check_size(int64_t width, int64_t height) {
  constexpr int64_t kMaxPixels = 178956970;
  TORCH_CHECK(width > 0 && height > 0, "it has no pixels");
  TORCH_CHECK(width <= kMaxPixels / height, "it claims ", width, "x", height,
              " pixels, the limit is ", kMaxPixels, " in all");
}

}  // namespace images::detail
