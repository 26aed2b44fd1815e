// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>
#include <webp/decode.h>

#include <cstring>

#include "support/images/decoders.h"

namespace images::detail {

namespace {

uint32_t little_endian(const uint8_t* data) {
  return data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24;
}

/// A WebP file is a list of chunks: name, length, data, padded to an even length.
int orientation_of(const Bytes& bytes) {
  constexpr std::size_t kRiffHeader = 12, kChunkHeader = 8;
  int by_xmp = 1;
  for (std::size_t at = kRiffHeader; at + kChunkHeader <= bytes.size();) {
    const std::size_t size = little_endian(bytes.data() + at + 4);
    const std::size_t data = at + kChunkHeader;
    if (size > bytes.size() - data) break;
    if (std::memcmp(bytes.data() + at, "EXIF", 4) == 0) {
      Bytes block(bytes.begin() + data, bytes.begin() + data + size);
      // Some writers put the prefix of JPEG's block in front, some do not.
      const uint8_t prefix[] = {'E', 'x', 'i', 'f', 0, 0};
      if (size < 6 || std::memcmp(block.data(), prefix, 6) != 0) {
        block.insert(block.begin(), std::begin(prefix), std::end(prefix));
      }
      if (const int found = exif_orientation(block.data(), block.size()); found != 1) return found;
    }
    if (std::memcmp(bytes.data() + at, "XMP ", 4) == 0) {
      by_xmp =
          xmp_orientation(std::string(bytes.begin() + static_cast<std::ptrdiff_t>(data),
                                      bytes.begin() + static_cast<std::ptrdiff_t>(data + size)));
    }
    at = data + size + size % 2;
  }
  return by_xmp;
}

const char* reason(VP8StatusCode status) {
  return status == VP8_STATUS_NOT_ENOUGH_DATA ? "the file ends too early" : "the data is damaged";
}

}  // namespace

Decoded decode_webp(const Bytes& bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(bytes.data(), bytes.size(), &features);
  TORCH_CHECK(status == VP8_STATUS_OK, reason(status));
  TORCH_CHECK(!features.has_animation,
              "an animation, which is not supported; hint: save one picture of it as PNG");
  check_size(features.width, features.height);
  Decoded result{Image(features.width, features.height), orientation_of(bytes)};
  const uint8_t* decoded = WebPDecodeRGBInto(bytes.data(), bytes.size(), result.image.pixels.data(),
                                             result.image.pixels.size(), features.width * 3);
  TORCH_CHECK(decoded != nullptr, "the file ends too early or is damaged");
  return result;
}

Image decode_webp_alpha(const Bytes& bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(bytes.data(), bytes.size(), &features);
  TORCH_CHECK(status == VP8_STATUS_OK, reason(status));
  if (!features.has_alpha || features.has_animation) return {};
  check_size(features.width, features.height);
  Bytes rgba(static_cast<std::size_t>(features.width) * features.height * 4);
  TORCH_CHECK(WebPDecodeRGBAInto(bytes.data(), bytes.size(), rgba.data(), rgba.size(),
                                 features.width * 4) != nullptr,
              "the file ends too early or is damaged");
  return grey_of_alpha(rgba, features.width, features.height);
}

}  // namespace images::detail
