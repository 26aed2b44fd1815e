// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sd {

/// The files that a program is going to write, checked before it works for them.
class Outputs {
 public:
  /// One more file; `flag` is what asks for it in messages, `bytes` what it will take at least,
  /// where that is known. An empty path is none.
  void add(const std::string& flag, const std::string& path, int64_t bytes = 0);
  /// A folder for files, which need not exist yet.
  void add_folder(const std::string& flag, const std::string& path);

  /// Errors: c10::Error if a file cannot be written where it shall be (a folder that is missing or
  /// not writable, a folder of that name, a name that is too long, a disk without room for all of
  /// them), or if two have one name
  void check() const;

 private:
  void check_space() const;

  struct File {
    std::string flag, path;
    int64_t bytes;
  };
  std::vector<File> files_;
  std::vector<std::pair<std::string, std::string>> folders_;
};

/// Makes a folder and those above it.
/// Errors: c10::Error naming it if that is not possible
void make_folder(const std::string& path);

}  // namespace sd
