// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <streambuf>
#include <string>

namespace cli {

/// While it lives, what the program prints (std::cout, and {fmt} to stdout) goes on although nobody
/// can read it any more: training does not end because `| head -1` has seen enough, or because the
/// terminal was closed. What went wrong is remembered for the end.
class StandardOutput {
 public:
  StandardOutput();
  ~StandardOutput();
  StandardOutput(const StandardOutput&) = delete;
  StandardOutput& operator=(const StandardOutput&) = delete;

  /// Writes what is left, and tells what is lost: the system's words for the first error, such as a
  /// full disk. Empty if there was none, and if the reader has gone, which is its own wish.
  std::string finish();

 private:
  int error_ = 0;
  std::FILE* own_ = nullptr;
  std::FILE* before_ = nullptr;
  std::unique_ptr<std::streambuf> buffer_;
  std::streambuf* buffer_before_ = nullptr;
};

/// Whether somebody looks at the standard output on a terminal that can draw.
bool standard_output_is_terminal();

/// The terminal's width in characters; 80 if it does not tell.
int64_t terminal_columns();

/// Nothing of this process is printed any more.
void silence_standard_output();

}  // namespace cli
