// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace lightlora::detail {

/// A whole file, mapped into memory for reading.
/// Errors: c10::Error if there is no such file, if it is a folder or a device, or if it cannot be
/// read
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    TORCH_CHECK(descriptor_ >= 0 || errno != ENOENT, "'", path,
                "': expected a file, got nothing of that name");
    TORCH_CHECK(descriptor_ >= 0, "'", path, "': expected a readable file, got '",
                std::strerror(errno), "'");
    try {
      map();
    } catch (...) {
      ::close(descriptor_);
      throw;
    }
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (size_ > 0) ::munmap(address_, size_);
    ::close(descriptor_);
  }

  std::string_view bytes() const { return {static_cast<const char*>(address_), size_}; }

  /// Gives the memory of bytes that were read back to the system, which reads them again if they
  /// are asked for. A large file would otherwise count as used memory until it is closed.
  void forget(std::string_view part) const {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uintptr_t>(part.data()) / page * page;
    const auto end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
    if (size_ > 0) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
  }

  /// Reading a page that is gone ends the process, so ask before: c10::Error if the file was cut
  /// off since it was opened. (A file that is replaced by renaming stays whole in here.)
  void check_unchanged() const {
    const auto size = static_cast<size_t>(status().st_size);
    TORCH_CHECK(size >= size_, "'", path_, "': expected ", size_,
                " bytes as when it was opened, got ", size,
                "; hint: another program is writing to it");
  }

 private:
  struct stat status() const {
    struct stat status{};
    TORCH_CHECK(::fstat(descriptor_, &status) == 0, "'", path_,
                "': expected a readable file, got '", std::strerror(errno), "'");
    return status;
  }

  void map() {
    const struct stat file = status();
    TORCH_CHECK(!S_ISDIR(file.st_mode), "'", path_,
                "': expected a file, got a folder; hint: name a file in it");
    TORCH_CHECK(S_ISREG(file.st_mode), "'", path_, "': expected a file, got a device or a pipe");
    const auto size = static_cast<size_t>(file.st_size);
    if (size == 0) return;  // an empty file cannot be mapped
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    TORCH_CHECK(address != MAP_FAILED, "'", path_, "': expected a file that can be mapped, got '",
                std::strerror(errno), "'");
    address_ = address;
    size_ = size;
  }

  std::string path_;
  int descriptor_ = -1;
  void* address_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lightlora::detail
