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
#include <cstring>
#include <memory>
#include <vector>

#include "support/images/decoders.h"

namespace images::detail {

namespace {

int length(const Bytes& bytes) {
  return static_cast<int>(std::min<std::size_t>(bytes.size(), INT_MAX));
}

// Where the flags stand that say whether the first picture of a GIF has a transparent colour; empty
// if it has none. The last of several counts.
std::vector<std::size_t> control_flags(const Bytes& bytes) {
  constexpr std::size_t kScreen = 13;
  if (bytes.size() < kScreen || bytes[0] != 'G' || bytes[1] != 'I' || bytes[2] != 'F') return {};
  const uint8_t flags = bytes[10];
  std::size_t at = kScreen + ((flags & 0x80U) != 0 ? 3 * (std::size_t{2} << (flags & 7U)) : 0);
  std::vector<std::size_t> found;
  while (at + 3 < bytes.size() && bytes[at] == 0x21) {  // an extension, then blocks with sizes
    if (bytes[at + 1] == 0xF9 && bytes[at + 2] == 4) found.push_back(at + 3);
    at += 2;
    while (at < bytes.size() && bytes[at] != 0) at += std::size_t{1} + bytes[at];
    ++at;
  }
  return found;
}

// PIL's convert("RGB") shows a transparent pixel in its palette's colour, where stb_image has none:
// the bytes without the flag of transparency before the first picture.
Bytes opaque_gif(const Bytes& bytes) {
  Bytes result = bytes;
  for (const std::size_t at : control_flags(bytes)) result[at] &= 0xFEU;
  return result;
}

/// The file as stb_image reads it, and whether it asked for more than there is.
struct Source {
  const Bytes& bytes;
  std::size_t at = 0;
  bool overrun = false;
};

int read_source(void* user, char* to, int count) {
  auto& source = *static_cast<Source*>(user);
  const std::size_t left = source.bytes.size() - source.at;
  const std::size_t taken = std::min(left, static_cast<std::size_t>(count));
  if (left == 0 && count > 0) source.overrun = true;
  std::copy_n(source.bytes.begin() + static_cast<std::ptrdiff_t>(source.at), taken,
              reinterpret_cast<uint8_t*>(to));
  source.at += taken;
  return static_cast<int>(taken);
}

void skip_source(void* user, int count) {
  auto& source = *static_cast<Source*>(user);
  const auto left = static_cast<int64_t>(source.bytes.size() - source.at);
  const auto back = -static_cast<int64_t>(source.at);
  const int64_t step = std::clamp<int64_t>(count, back, left);
  source.at = static_cast<std::size_t>(static_cast<int64_t>(source.at) + step);
}

int source_ended(void* user) {
  const auto& source = *static_cast<Source*>(user);
  return source.at == source.bytes.size() ? 1 : 0;
}

struct Pixels {
  std::unique_ptr<stbi_uc, void (*)(void*)> values;
  int width, height;
};

// The first picture of a file, with 3 or 4 channels.
Pixels decode_pixels(const Bytes& bytes, int wanted) {
  Source source{bytes};
  int width = 0, height = 0, channels = 0;
  TORCH_CHECK(stbi_info_from_memory(bytes.data(), length(bytes), &width, &height, &channels) != 0,
              stbi_failure_reason());
  check_size(width, height);
  // A GIF takes nine bytes for each pixel on the way, whatever its file has.
  const bool gif = bytes.size() > 3 && bytes[0] == 'G' && bytes[1] == 'I' && bytes[2] == 'F';
  constexpr int64_t kMostGifPixels = 25'000'000;
  TORCH_CHECK(!gif || int64_t{width} * height <= kMostGifPixels, "it claims ", width, "x", height,
              " pixels, the limit for a GIF is ", kMostGifPixels, " in all");
  // TGA's shortest spelling is two bytes for 128 equal pixels, BMP's one for eight. Without this a file of
  // a few bytes costs as much as the picture that it claims, before its end is found.
  constexpr int64_t kMostPixelsOfByte = 64;
  TORCH_CHECK(gif || int64_t{width} * height <= kMostPixelsOfByte * length(bytes),
              "the file ends too early");
  const stbi_io_callbacks calls{read_source, skip_source, source_ended};
  Pixels pixels{{stbi_load_from_callbacks(&calls, &source, &width, &height, &channels, wanted),
                 stbi_image_free},
                width,
                height};
  TORCH_CHECK(pixels.values != nullptr, stbi_failure_reason());
  // stb_image takes zeros for what is missing: the picture would end in black.
  TORCH_CHECK(!source.overrun, "the file ends too early");
  return pixels;
}

}  // namespace

bool is_tga(const Bytes& bytes) {
  stbi__context context;
  stbi__start_mem(&context, bytes.data(), length(bytes));
  return stbi__tga_test(&context) != 0;
}

bool gif_is_transparent(const Bytes& head) {
  const auto flags = control_flags(head);
  return !flags.empty() && (head[flags.back()] & 1U) != 0;
}

Decoded decode_other(const Bytes& given) {
  constexpr int kColours = 3;
  const auto pixels = decode_pixels(opaque_gif(given), kColours);
  Decoded result{Image(pixels.width, pixels.height)};
  std::copy_n(pixels.values.get(), result.image.pixels.size(), result.image.pixels.begin());
  return result;
}

Image decode_gif_alpha(const Bytes& bytes) {
  if (!gif_is_transparent(bytes)) return {};
  // stb_image paints what is transparent in the background's colour, unless that is number 0.
  constexpr std::size_t kBackground = 11;
  Bytes changed = bytes;
  changed[kBackground] = 0;
  constexpr int kWithAlpha = 4;
  const auto pixels = decode_pixels(changed, kWithAlpha);
  const auto count =
      static_cast<std::size_t>(pixels.width) * static_cast<std::size_t>(pixels.height);
  const Bytes rgba(pixels.values.get(), pixels.values.get() + kWithAlpha * count);
  return grey_of_alpha(rgba, pixels.width, pixels.height);
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

Image grey_of_alpha(const Bytes& rgba, int64_t width, int64_t height) {
  Image image(width, height);
  for (std::size_t i = 0; i < rgba.size() / 4; ++i) {
    std::fill_n(image.pixels.begin() + static_cast<std::ptrdiff_t>(3 * i), 3, rgba[4 * i + 3]);
  }
  return image;
}

int xmp_orientation(const std::string& xmp) {
  for (const char* key : {"tiff:Orientation=\"", "tiff:Orientation>"}) {
    const auto at = xmp.find(key);
    if (at == std::string::npos) continue;
    const char digit = xmp[std::min(at + std::strlen(key), xmp.size() - 1)];
    if (digit >= '1' && digit <= '8') return digit - '0';
  }
  return 1;
}

void check_size(int64_t width, int64_t height) {
  constexpr int64_t kMaxPixels = 178956970;
  TORCH_CHECK(width > 0 && height > 0, "it has no pixels");
  TORCH_CHECK(width <= kMaxPixels / height, "it claims ", width, "x", height,
              " pixels, the limit is ", kMaxPixels, " in all");
}

}  // namespace images::detail
