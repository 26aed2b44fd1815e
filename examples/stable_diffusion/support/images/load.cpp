// SPDX-License-Identifier: Apache-2.0
#include "support/images/load.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <system_error>
#include <utility>

#include "support/images/decoders.h"
#include "support/images/file.h"

namespace images {

namespace {

using detail::Bytes;
using detail::Decoded;

enum class Format { kNone, kJpeg, kPng, kWebp, kOther };

bool has(const Bytes& bytes, std::size_t at, const std::string& text) {
  return bytes.size() >= at + text.size() &&
         std::equal(text.begin(), text.end(), bytes.begin() + at,
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

std::string lower_extension(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension;
}

Format format_of(const Bytes& bytes, const std::string& name) {
  if (has(bytes, 0, "\xFF\xD8\xFF")) return Format::kJpeg;
  if (has(bytes, 0, "\x89PNG\r\n\x1A\n")) return Format::kPng;
  if (has(bytes, 0, "RIFF") && has(bytes, 8, "WEBP")) return Format::kWebp;
  // Text can begin with "BM": bytes 6 to 9 of a bitmap are reserved and zero.
  if (has(bytes, 0, "BM") && has(bytes, 6, std::string(4, '\0'))) return Format::kOther;
  if (has(bytes, 0, "GIF87a") || has(bytes, 0, "GIF89a")) return Format::kOther;
  if (lower_extension(name) == ".tga" && detail::is_tga(bytes)) return Format::kOther;
  return Format::kNone;
}

bool looks_like_text(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.begin() + std::min<std::size_t>(bytes.size(), 512),
                     [](uint8_t c) { return c >= 0x20 || c == '\n' || c == '\r' || c == '\t'; });
}

/// What a file that is no picture seems to be, with the way out if there is one.
std::string looks_like(const Bytes& bytes) {
  const std::string convert = "; hint: convert it to PNG or JPEG first";
  if (bytes.empty()) return "an empty file";
  if (has(bytes, 4, "ftypavif")) return "an AVIF picture" + convert;
  for (const char* brand : {"ftypheic", "ftypheix", "ftypmif1", "ftyphevc"}) {
    if (has(bytes, 4, brand)) return "a HEIC picture" + convert;
  }
  if (has(bytes, 4, "ftyp")) return "a video";
  if (has(bytes, 0, std::string("II*\0", 4)) || has(bytes, 0, std::string("MM\0*", 4))) {
    return "a TIFF or raw camera picture" + convert;
  }
  if (has(bytes, 0, "8BPS")) return "a Photoshop file" + convert;
  if (has(bytes, 0, "%PDF")) return "a PDF document";
  if (has(bytes, 0, "PK\x03\x04")) return "a ZIP archive; hint: unpack it first";
  if (has(bytes, 0, "version https://git-lfs")) {
    return "a Git LFS pointer; hint: git lfs pull fetches the file";
  }
  if (has(bytes, 0, "<svg")) return "an SVG drawing" + convert;
  if (has(bytes, 0, "<!DOCTYPE") || has(bytes, 0, "<html")) {
    return "a web page; hint: download the picture itself";
  }
  if (looks_like_text(bytes)) return "a text file";
  return "a file of unknown format";
}

std::string format_name(const Bytes& bytes) {
  if (has(bytes, 0, "\xFF\xD8")) return "JPEG";
  if (has(bytes, 0, "\x89PNG")) return "PNG";
  if (has(bytes, 0, "RIFF")) return "WebP";
  if (has(bytes, 0, "BM")) return "BMP";
  return has(bytes, 0, "GIF") ? "GIF" : "TGA";
}

Decoded decode(Format format, const Bytes& bytes, int64_t least = 0) {
  switch (format) {
    case Format::kJpeg:
      return detail::decode_jpeg(bytes, least);
    case Format::kPng:
      return detail::decode_png(bytes);
    case Format::kWebp:
      return detail::decode_webp(bytes);
    default:
      return detail::decode_other(bytes);
  }
}

constexpr std::array<const char*, 15> kPictureExtensions = {
    ".jpg", ".jpeg", ".jpe",  ".jfif", ".png", ".webp", ".bmp", ".gif",
    ".tga", ".heic", ".heif", ".avif", ".tif", ".tiff", ".psd"};

bool is_called_a_picture(const std::filesystem::path& path) {
  if (path.filename().string()[0] == '.') return false;  // macOS keeps "._name.png" beside name.png
  const std::string extension = lower_extension(path.string());
  return std::find(kPictureExtensions.begin(), kPictureExtensions.end(), extension) !=
         kPictureExtensions.end();
}

void check_is_picture(Format format, const Bytes& bytes, const std::string& name) {
  TORCH_CHECK(format != Format::kNone, "'", name,
              "': expected a picture (JPEG, PNG, WebP, BMP, GIF or TGA), got ", looks_like(bytes));
}

constexpr int64_t kHeadBytes = 4096;
// The largest picture that is decoded takes a little more without any compression.
constexpr std::uintmax_t kMostFileBytes = 1'000'000'000;

}  // namespace

namespace {

Loaded decode_reduced(const Bytes& bytes, const std::string& name, int64_t least) {
  const Format format = format_of(bytes, name);
  check_is_picture(format, bytes, name);
  Decoded decoded;
  try {
    decoded = decode(format, bytes, least);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", name, "': expected a whole ", format_name(bytes),
                " picture, got a damaged "
                "or unusual one: ",
                error.what_without_backtrace());
  }
  Loaded loaded{std::move(decoded.image), decoded.width, decoded.height};
  if (loaded.width == 0) {
    loaded.width = loaded.image.width;
    loaded.height = loaded.image.height;
  }
  if (decoded.orientation < 2 || decoded.orientation > 8) return loaded;
  loaded.image = apply_orientation(loaded.image, decoded.orientation);
  constexpr int kFirstTurned = 5;  // the orientations from here on exchange width and height
  if (decoded.orientation >= kFirstTurned) std::swap(loaded.width, loaded.height);
  return loaded;
}

// A whole file, if it is not larger than any picture is.
Bytes read_picture_file(const std::string& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  TORCH_CHECK(error || size <= kMostFileBytes, "'", path, "': expected a picture of at most ",
              kMostFileBytes, " bytes, got ", size);
  return read_file(path);
}

}  // namespace

Image decode_image(const Bytes& bytes, const std::string& name) {
  return decode_reduced(bytes, name, 0).image;
}

Loaded load_reduced(const std::string& path, int64_t least) {
  const Bytes head = read_file(path, kHeadBytes);
  check_is_picture(format_of(head, path), head, path);
  return decode_reduced(read_picture_file(path), path, least);
}

void check_shape(const std::string& what, int64_t width, int64_t height) {
  constexpr int64_t kLongest = 50;
  TORCH_CHECK(width <= kLongest * height && height <= kLongest * width, what,
              ": expected a picture at most ", kLongest, " times as long as wide, got ", width, "x",
              height, " pixels; hint: cut a part out of it");
}

Image load_image(const std::string& path) { return load_reduced(path, 0).image; }

bool has_transparency(const std::string& path) {
  const Bytes head = read_file(path, kHeadBytes);
  const Format format = format_of(head, path);
  if (format == Format::kWebp) return has(head, 12, "VP8X") && (head.at(20) & 0x10U) != 0;
  if (has(head, 0, "GIF")) return detail::gif_is_transparent(head);
  constexpr std::size_t kColourType = 25;
  if (format != Format::kPng || head.size() <= kColourType) return false;
  const std::string text(head.begin(), head.end());
  return (head[kColourType] & 4U) != 0 || text.find("tRNS") < text.find("IDAT");
}

Image load_alpha(const std::string& path) {
  const Bytes bytes = read_picture_file(path);
  const Format format = format_of(bytes, path);
  const bool gif = has(bytes, 0, "GIF");
  if (format != Format::kPng && format != Format::kWebp && !gif) return {};
  try {
    const Image alpha = gif                      ? detail::decode_gif_alpha(bytes)
                        : format == Format::kPng ? detail::decode_png_alpha(bytes)
                                                 : detail::decode_webp_alpha(bytes);
    return alpha.empty() ? alpha : apply_orientation(alpha, decode(format, bytes).orientation);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': expected a whole ", format_name(bytes),
                " picture, got a damaged or unusual one: ", error.what_without_backtrace());
  }
}

bool is_image_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  try {
    return format_of(read_file(path, kHeadBytes), path) != Format::kNone;
  } catch (const c10::Error&) {
    return false;
  }
}

std::string describe_other_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return "a folder";
  if (!std::filesystem::is_regular_file(path, error)) return "a device, a pipe or a broken link";
  return looks_like(read_file(path, kHeadBytes));
}

Folder list_images(const std::string& folder) {
  namespace fs = std::filesystem;
  TORCH_CHECK(fs::exists(folder), "'", folder,
              "': expected a folder with pictures, got no such folder");
  TORCH_CHECK(fs::is_directory(folder), "'", folder,
              "': expected a folder with pictures, got a file");
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    entries.push_back(entry->path());
  }
  TORCH_CHECK(!error, "'", folder,
              "': expected a readable folder, got the error: ", error.message());
  std::sort(entries.begin(), entries.end());
  Folder result;
  for (const auto& path : entries) {
    if (fs::is_regular_file(path, error) && is_called_a_picture(path)) {
      const Bytes head = read_file(path.string(), kHeadBytes);
      check_is_picture(format_of(head, path.string()), head, path.string());
    }
    if (path.filename().string()[0] != '.' && is_image_file(path.string())) {
      result.images.push_back(path.string());
    } else {
      result.others.push_back(path.filename().string());
    }
  }
  return result;
}

}  // namespace images
