// SPDX-License-Identifier: Apache-2.0
#pragma once

// AtomicFile: all of the library that writes files and folders, and so what another system than Linux
// needs anew, beside detail/formats/mapped_file.h, which reads them.
#include <lightlora/file_io.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

namespace lightlora {

namespace detail {

// Where a file is written before it gets its name, and what killed processes leave there.
inline constexpr const char* kTemporaryPrefix = ".lightlora-";
inline constexpr const char* kTemporaryEnding = ".tmp";

inline std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == path.npos ? "" : path.substr(0, slash + 1);
}

// The name behind symbolic links, which need not exist.
inline std::string behind_links(std::string path) {
  for (int links = 0; links < 40; ++links) {
    char to[4096];
    const ssize_t length = ::readlink(path.c_str(), to, sizeof(to));
    if (length <= 0 || static_cast<std::size_t>(length) == sizeof(to)) break;
    const std::string next(to, static_cast<std::size_t>(length));
    path = next[0] == '/' ? next : folder_of(path) + next;
  }
  return path;
}

// Removes one file of a writer that is gone: its process is not there, and nobody holds its lock,
// which also those on other machines do. A file system without locks keeps it.
inline void remove_abandoned(const std::string& folder, const char* name) {
  long process = 0;
  int end = 0;
  if (std::sscanf(name, ".lightlora-%ld-%*u.tmp%n", &process, &end) != 1 || end == 0 ||
      name[end] != '\0') {
    return;
  }
  if (process <= 0 || ::kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH) return;
  const std::string path = folder + name;
  const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) return;
  if (::flock(file, LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
  ::close(file);
}

// Once for each folder: it may hold many files.
inline void clean_folder(const std::string& folder) {
  static std::mutex mutex;
  static std::set<std::string> cleaned;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!cleaned.insert(folder).second) return;
  }
  DIR* listing = ::opendir(folder.empty() ? "." : folder.c_str());
  if (listing == nullptr) return;
  while (const dirent* entry = ::readdir(listing)) {
    if (std::strncmp(entry->d_name, kTemporaryPrefix, std::strlen(kTemporaryPrefix)) == 0) {
      remove_abandoned(folder, entry->d_name);
    }
  }
  ::closedir(listing);
}

}  // namespace detail

LIGHTLORA_INLINE AtomicFile::AtomicFile(const std::string& path)
    : path_(path), target_(detail::behind_links(path)) {
  struct stat target{};
  const bool exists = ::stat(path.c_str(), &target) == 0;
  // A name of its own, which may be shorter, would not tell that this one cannot be had.
  const bool name = errno == ENAMETOOLONG || errno == ELOOP;
  check(exists || errno == ENOENT,
        name ? "a name that a file can have" : "a folder that can be written to");
  TORCH_CHECK(!exists || S_ISREG(target.st_mode), "'", path,
              "': expected the name of a file to write, got ",
              S_ISDIR(target.st_mode) ? "a folder" : "a device or a pipe");
  TORCH_CHECK(!path.empty() && target_.back() != '/', "'", path,
              "': expected the name of a file to write, got that of a folder");
  static std::atomic<unsigned> count{0};
  const std::string folder = detail::folder_of(target_);
  detail::clean_folder(folder);
  for (int attempt = 0; descriptor_ < 0 && attempt < 1000; ++attempt) {
    temporary_ = folder + detail::kTemporaryPrefix + std::to_string(::getpid()) + "-" +
                 std::to_string(count++) + detail::kTemporaryEnding;
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) break;
  }
  check(descriptor_ >= 0, "a folder that can be written to",
        errno == ENOENT ? "; hint: create the folder first" : "");
  ::flock(descriptor_, LOCK_EX | LOCK_NB);  // says that the writer is alive
  if (exists) ::fchmod(descriptor_, target.st_mode & 07777);
}

LIGHTLORA_INLINE AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!committed_) ::unlink(temporary_.c_str());
}

LIGHTLORA_INLINE void AtomicFile::reserve(uint64_t size) {
  if (size == 0) return;
  const int error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(size));
  if (error == EINVAL || error == EOPNOTSUPP) return;  // not every file system can
  errno = error;
  check(error == 0, std::to_string(size) + " bytes of free space");
}

LIGHTLORA_INLINE void AtomicFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    // Linux writes at most 2 GiB at a time.
    const ssize_t written =
        ::write(descriptor_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "a complete file");
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

LIGHTLORA_INLINE void AtomicFile::commit() {
  check(::fsync(descriptor_) == 0, "a complete file");
  // Renamed while it is open, so that it never looks abandoned.
  check(std::rename(temporary_.c_str(), target_.c_str()) == 0, "a name that can be written");
  committed_ = true;
  const int descriptor = descriptor_;
  descriptor_ = -1;
  check(::close(descriptor) == 0, "a complete file");
  // The new name outlives a power cut only once its folder is on the disk too.
  const std::string folder = detail::folder_of(target_);
  const int opened =
      ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) return;  // a folder that may be written but not read
  ::fsync(opened);
  ::close(opened);
}

LIGHTLORA_INLINE void AtomicFile::check(bool success, const std::string& expected,
                                        const char* hint) const {
  TORCH_CHECK(success, "'", path_, "': expected ", expected, ", got '", std::strerror(errno), "'",
              hint);
}

}  // namespace lightlora
