// SPDX-License-Identifier: Apache-2.0
// libpng over memory. libpng reports errors with longjmp, which skips destructors: a function that
// calls setjmp(png_jmpbuf(...)) creates no object with one, and everything lives in these classes
// outside it.
#pragma once

#include <png.h>

#include <cstdint>
#include <string>
#include <vector>

namespace images::detail {

/// A libpng reader over a whole file in memory; `message` holds the last error.
struct PngReader {
  explicit PngReader(const std::vector<uint8_t>& bytes);
  ~PngReader();
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  const std::vector<uint8_t>& bytes;
  std::size_t position = 0;
  std::string message;
  png_structp png = nullptr;
  png_infop info = nullptr;
};

/// A libpng writer into memory.
struct PngWriter {
  PngWriter();
  ~PngWriter();
  PngWriter(const PngWriter&) = delete;
  PngWriter& operator=(const PngWriter&) = delete;

  std::vector<uint8_t> bytes;
  std::string message;
  png_structp png = nullptr;
  png_infop info = nullptr;
};

}  // namespace images::detail
