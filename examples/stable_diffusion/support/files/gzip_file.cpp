// SPDX-License-Identifier: Apache-2.0
#include "support/files/gzip_file.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>
#include <zlib.h>

#include <array>
#include <memory>

#include "support/files/limits.h"

namespace sd {

std::string read_gzip_file(const std::string& path) {
  // Looked at first: zlib would wait for a pipe.
  const std::string packed = lightlora::read_file(path, limits::kMergesBytes);
  if (packed.substr(0, 2) != "\x1F\x8B") return packed;
  z_stream stream = {};
  constexpr int kGzipOnly = 16;
  TORCH_CHECK(inflateInit2(&stream, MAX_WBITS + kGzipOnly) == Z_OK, "'", path,
              "': expected memory to unpack it, got none");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> owner(&stream, inflateEnd);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string text;
  std::array<char, 1 << 16> part{};
  int state = Z_OK;
  while (state == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(part.data());
    stream.avail_out = static_cast<uInt>(part.size());
    state = inflate(&stream, Z_NO_FLUSH);
    text.append(part.data(), part.size() - stream.avail_out);
    TORCH_CHECK(text.size() <= limits::kMergesBytes, "'", path, "': expected at most ",
                limits::kMergesBytes, " bytes when unpacked, got more");
  }
  TORCH_CHECK(
      state == Z_STREAM_END, "'", path, "': expected a whole gzip file, got a damaged one (",
      stream.msg == nullptr ? "unexpected end of file" : stream.msg, "); hint: copy it again");
  return text;
}

}  // namespace sd
