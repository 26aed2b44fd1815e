// SPDX-License-Identifier: Apache-2.0
#include "support/images/png_memory.h"

#include <c10/util/Exception.h>

#include <cstring>

namespace images::detail {

namespace {

[[noreturn]] void on_error(png_structp png, png_const_charp text) {
  *static_cast<std::string*>(png_get_error_ptr(png)) = text;
  png_longjmp(png, 1);
}

// Warnings speak of details of colour profiles and the like, which play no part here.
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, std::size_t count) {
  auto& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
  if (reader.bytes.size() - reader.position < count) png_error(png, "the file ends too early");
  std::memcpy(out, reader.bytes.data() + reader.position, count);
  reader.position += count;
}

void write_bytes(png_structp png, png_bytep data, std::size_t count) {
  auto& writer = *static_cast<PngWriter*>(png_get_io_ptr(png));
  writer.bytes.insert(writer.bytes.end(), data, data + count);
}

}  // namespace

PngReader::PngReader(const std::vector<uint8_t>& bytes) : bytes(bytes) {
  png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
  if (png) info = png_create_info_struct(png);
  if (!info) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    TORCH_CHECK(false, "images::PngReader: expected libpng ", PNG_LIBPNG_VER_STRING, ", got ",
                png_get_libpng_ver(nullptr));
  }
  png_set_read_fn(png, this, read_bytes);
  // Texts and colour profiles may be packed a thousandfold, and there may be any number of them.
  constexpr png_uint_32 kMostChunks = 64;
  constexpr png_alloc_size_t kMostChunkBytes = 2'000'000;
  png_set_chunk_cache_max(png, kMostChunks);
  png_set_chunk_malloc_max(png, kMostChunkBytes);
}

PngReader::~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }

PngWriter::PngWriter() {
  png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
  if (png) info = png_create_info_struct(png);
  if (!info) {
    png_destroy_write_struct(&png, nullptr);
    TORCH_CHECK(false, "images::PngWriter: expected libpng ", PNG_LIBPNG_VER_STRING, ", got ",
                png_get_libpng_ver(nullptr));
  }
  png_set_write_fn(png, this, write_bytes, /*flush=*/nullptr);
}

PngWriter::~PngWriter() { png_destroy_write_struct(&png, &info); }

}  // namespace images::detail
