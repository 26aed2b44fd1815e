// SPDX-License-Identifier: Apache-2.0
#include "support/files/gzip_file.h"

#include <c10/util/Exception.h>
#include <zlib.h>

#include <array>
#include <memory>

namespace sd {

std::string read_gzip_file(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  TORCH_CHECK(file != nullptr, "'", path, "': expected a readable file, got none");
  std::string text;
  std::array<char, 1 << 16> part{};
  int count = 0;
  while ((count = gzread(file.get(), part.data(), part.size())) > 0) {
    text.append(part.data(), static_cast<size_t>(count));
  }
  int error = Z_OK;
  const char* message = gzerror(file.get(), &error);
  TORCH_CHECK(count == 0 && (error == Z_OK || error == Z_STREAM_END), "'", path,
              "': expected a whole gzip file, got a damaged one (", message,
              "); hint: copy it again");
  return text;
}

}  // namespace sd
