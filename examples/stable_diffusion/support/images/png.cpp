// SPDX-License-Identifier: Apache-2.0
#include "support/images/png.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>
#include <png.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "support/images/decoders.h"
#include "support/images/file.h"
#include "support/images/png_memory.h"

namespace images {

namespace {

using detail::PngReader;
using detail::PngWriter;

constexpr char32_t kReplacement = 0xFFFD;

std::string lower_ending(const std::string& path) {
  auto ending = std::filesystem::path(path).extension().string();
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return ending;
}

/// Length of the valid UTF-8 sequence at `at` and its code point; length 1 and kReplacement if
/// invalid.
std::pair<std::size_t, char32_t> decode_utf8(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, lead};
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || at + length > text.size()) return {1, kReplacement};
  char32_t code = lead & (0xFF >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {1, kReplacement};
    code = code << 6 | (byte(i) & 0x3F);
  }
  const char32_t smallest = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (code < smallest || code > 0x10FFFF || surrogate) return {1, kReplacement};
  return {length, code};
}

/// A text ready for a chunk: in Latin-1 if it fits, else in valid UTF-8.
struct ChunkText {
  std::string bytes;
  bool latin1 = true;
};

ChunkText to_chunk(const std::string& text) {
  ChunkText utf8{"", false}, latin1;
  for (std::size_t at = 0; at < text.size();) {
    const auto [length, code] = decode_utf8(text, at);
    if (code == kReplacement && length == 1) {
      utf8.bytes += "\xEF\xBF\xBD";
    } else {
      utf8.bytes.append(text, at, length);
    }
    // PNG recommends no control characters except the line feed in tEXt; NUL would end the text.
    const bool printable =
        code == '\n' || (code >= 0x20 && code < 0x7F) || (code >= 0xA0 && code <= 0xFF);
    latin1.latin1 = latin1.latin1 && printable;
    latin1.bytes += static_cast<char>(code);
    at += length;
  }
  std::replace(utf8.bytes.begin(), utf8.bytes.end(), '\0', ' ');
  return latin1.latin1 ? latin1 : utf8;
}

std::string from_latin1(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x80) {
      result += c;
    } else {
      result += static_cast<char>(0xC0 | code >> 6);
      result += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  return result;
}

void check_keyword(const std::string& key) {
  const bool printable =
      std::all_of(key.begin(), key.end(), [](char c) { return c >= ' ' && c <= '~'; });
  TORCH_CHECK_VALUE(
      printable && !key.empty() && key.size() <= 79 && key.front() != ' ' && key.back() != ' ',
      "images::save_png: expected a keyword of 1 to 79 printable ASCII characters, got '", key,
      "'");
}

bool encode(PngWriter& writer, const Image& image, png_bytepp rows, png_textp text, int count) {
  if (setjmp(png_jmpbuf(writer.png))) return false;
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), /*bit_depth=*/8, PNG_COLOR_TYPE_RGB,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (count > 0) png_set_text(writer.png, writer.info, text, count);
  png_write_info(writer.png, writer.info);
  png_write_image(writer.png, rows);
  png_write_end(writer.png, /*info_ptr=*/nullptr);
  return true;
}

bool read_start(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_read_info(reader.png, reader.info);
  return true;
}

/// Reads to the end of the file, the pixels only to get past them.
bool read_rest(PngReader& reader, std::vector<uint8_t>& row) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  const int passes = png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  row.resize(png_get_rowbytes(reader.png, reader.info));
  const png_uint_32 height = png_get_image_height(reader.png, reader.info);
  for (png_uint_32 y = 0; y < height * static_cast<png_uint_32>(passes); ++y) {
    png_read_row(reader.png, row.data(), nullptr);
  }
  png_read_end(reader.png, reader.info);
  return true;
}

void check_png_size(const PngReader& reader, const std::string& path) {
  try {
    detail::check_size(png_get_image_width(reader.png, reader.info),
                       png_get_image_height(reader.png, reader.info));
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
}

}  // namespace

void save_png(const std::string& path, const Image& image, const PngText& text) {
  TORCH_CHECK_VALUE(!image.empty(), "images::save_png: expected a picture, got an empty one");
  std::vector<ChunkText> contents;
  for (const auto& [key, value] : text) {
    check_keyword(key);
    contents.push_back(to_chunk(value));
  }
  std::vector<png_text> chunks;
  for (const auto& [key, value] : text) {
    ChunkText& content = contents[chunks.size()];
    png_text chunk = {};
    chunk.compression = content.latin1 ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    chunk.key = const_cast<char*>(key.c_str());  // libpng copies it
    chunk.text = content.bytes.data();
    chunk.text_length = content.latin1 ? content.bytes.size() : 0;
    chunk.itxt_length = content.latin1 ? 0 : content.bytes.size();
    chunks.push_back(chunk);
  }
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < image.height; ++y) rows.push_back(const_cast<uint8_t*>(image.row(y)));
  PngWriter writer;
  TORCH_CHECK(encode(writer, image, rows.data(), chunks.data(), static_cast<int>(chunks.size())),
              "'", path,
              "': expected a picture that PNG can hold, got the error: ", writer.message);
  lightlora::AtomicFile file(path);
  file.write({reinterpret_cast<const char*>(writer.bytes.data()), writer.bytes.size()});
  file.commit();
}

bool ends_as_png(const std::string& path) { return lower_ending(path) == ".png"; }

void check_png_name(const std::string& path) {
  const auto ending = lower_ending(path);
  for (const char* other : {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tga",
                            ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".psd", ".svg"}) {
    TORCH_CHECK_VALUE(ending != other, "'", path, "': expected a name that ends in .png, got ",
                      other, "; hint: pictures are PNG files, which carry their settings");
  }
}

PngText read_png_text(const std::string& path) {
  constexpr int64_t kMostBytes = 1'000'000'000;
  const std::vector<uint8_t> bytes = read_file(path, kMostBytes);
  TORCH_CHECK(bytes.size() >= 8 && png_sig_cmp(bytes.data(), 0, 8) == 0, "'", path,
              "': expected a PNG picture, got another file");
  PngReader reader(bytes);
  std::vector<uint8_t> row;
  const bool started = read_start(reader);
  if (started) check_png_size(reader, path);
  TORCH_CHECK(started && read_rest(reader, row), "'", path,
              "': expected a whole PNG picture, got a damaged one: ", reader.message);
  png_textp chunks = nullptr;
  int count = 0;
  png_get_text(reader.png, reader.info, &chunks, &count);
  PngText result;
  for (int i = 0; i < count; ++i) {
    const bool utf8 = chunks[i].compression >= PNG_ITXT_COMPRESSION_NONE;
    const std::size_t length = utf8 ? chunks[i].itxt_length : chunks[i].text_length;
    const std::string text(chunks[i].text, length);
    result[chunks[i].key] = utf8 ? text : from_latin1(text);
  }
  return result;
}

}  // namespace images
