// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

namespace lightlora::detail {

/// A file that appears under its name only when it is complete: it is written beside the target and
/// renamed by `commit()`. Without `commit()` nothing is left of it, and an older file stays as it
/// was. Errors: c10::Error for a folder that is missing or not writable, a full disk, a target that
/// is no file
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path) : path_(path) {
    struct stat target {};
    TORCH_CHECK(::stat(path.c_str(), &target) != 0 || S_ISREG(target.st_mode), "'", path,
                "': expected the name of a file to write, got ",
                S_ISDIR(target.st_mode) ? "a folder" : "a device or a pipe");
    // A name of its own rather than one made from the target's, which may be as long as names can
    // be.
    static std::atomic<unsigned> count{0};
    const size_t slash = path.rfind('/');
    const std::string folder = slash == path.npos ? "" : path.substr(0, slash + 1);
    for (int attempt = 0; descriptor_ < 0 && attempt < 1000; ++attempt) {
      temporary_ = folder + ".lightlora-" + std::to_string(::getpid()) + "-" +
                   std::to_string(count++) + ".tmp";
      descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor_ < 0 && errno != EEXIST) break;
    }
    check(descriptor_ >= 0, "a folder that can be written to",
          errno == ENOENT ? "; hint: create the folder first" : "");
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(temporary_.c_str());
  }

  /// Claims the space for the whole file, so that a full disk is found before any time is spent.
  void reserve(uint64_t size) {
    if (size == 0) return;
    const int error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(size));
    if (error == EINVAL || error == EOPNOTSUPP) return;  // not every file system can
    errno = error;
    check(error == 0, std::to_string(size) + " bytes of free space");
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      // Linux writes at most 2 GiB at a time.
      const ssize_t written =
          ::write(descriptor_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      check(written >= 0, "a complete file");
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }

  void commit() {
    check(::fsync(descriptor_) == 0, "a complete file");
    const int descriptor = descriptor_;
    descriptor_ = -1;
    check(::close(descriptor) == 0, "a complete file");
    check(std::rename(temporary_.c_str(), path_.c_str()) == 0, "a name that can be written");
    committed_ = true;
  }

 private:
  void check(bool success, const std::string& expected, const char* hint = "") const {
    TORCH_CHECK(success, "'", path_, "': expected ", expected, ", got '", std::strerror(errno), "'",
                hint);
  }

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace lightlora::detail
