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

/// Opens a regular file for reading, and nothing else: a pipe would keep the reader waiting, and a
/// device may have no end.
/// Errors: c10::Error if there is no such file, if it is a folder or a device, or if it cannot be
/// read
inline int open_regular(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  TORCH_CHECK(file >= 0 || errno != ENOENT, "'", path,
              "': expected a file, got nothing of that name");
  TORCH_CHECK(file >= 0, "'", path, "': expected a readable file, got '", std::strerror(errno),
              "'");
  struct stat status{};
  const bool known = ::fstat(file, &status) == 0;
  if (known && S_ISREG(status.st_mode)) return file;
  ::close(file);
  TORCH_CHECK(!known || !S_ISDIR(status.st_mode), "'", path,
              "': expected a file, got a folder; hint: name a file in it");
  TORCH_CHECK(false, "'", path, "': expected a file, got a device or a pipe");
}

/// A whole file, mapped into memory for reading.
/// Errors: c10::Error if there is no such file, if it is a folder or a device, or if it cannot be
/// read
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) : path_(path) {
    descriptor_ = open_regular(path);
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
    const auto size = static_cast<size_t>(status().st_size);
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

/// The bytes of a regular file of at most `most` bytes. Read, not mapped: a file that another program
/// cuts off meanwhile would end this one.
/// Errors: those of MappedFile, and c10::Error for a file that is larger
inline std::string read_whole(const std::string& path, uint64_t most) {
  const int file = open_regular(path);
  std::string bytes;
  ssize_t count = 0;
  int error = 0;
  char part[1 << 16];
  while (bytes.size() <= most && (count = ::read(file, part, sizeof(part))) != 0) {
    if (count < 0 && errno != EINTR) {
      error = errno;
      break;
    }
    if (count > 0) bytes.append(part, static_cast<size_t>(count));
  }
  ::close(file);
  TORCH_CHECK(error == 0, "'", path, "': expected a readable file, got '", std::strerror(error),
              "'");
  TORCH_CHECK(bytes.size() <= most, "'", path, "': expected a file of at most ", most,
              " bytes, got a larger one; hint: is it the right file?");
  return bytes;
}

}  // namespace lightlora::detail
