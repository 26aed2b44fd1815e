// SPDX-License-Identifier: Apache-2.0
#include "support/files/disk.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>

#include "support/cli/format.h"

namespace sd {

std::string why_not_writable(const std::string& folder) {
  return ::access(folder.c_str(), W_OK | X_OK) == 0 ? "" : std::strerror(errno);
}

int64_t free_bytes(const std::string& path) {
  constexpr auto kMost = std::numeric_limits<int64_t>::max();
  std::error_code error;
  std::filesystem::path existing = std::filesystem::absolute(path, error);
  while (!error && !std::filesystem::exists(existing, error) &&
         existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  if (error) return kMost;
  const auto space = std::filesystem::space(existing, error);
  return error ? kMost : static_cast<int64_t>(std::min<uintmax_t>(space.available, kMost));
}

void require_space(const std::string& path, int64_t bytes, const std::string& what,
                   const std::string& hint) {
  const int64_t there = free_bytes(path);
  TORCH_CHECK(bytes <= there, "'", path, "': expected ", cli::format_bytes(bytes),
              " of free space for ", what, ", got ", cli::format_bytes(there), "; hint: ", hint);
}

void sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // a folder that may be written but not read
  ::fsync(descriptor);
  ::close(descriptor);
}

FolderLock::FolderLock(const std::string& folder)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  held_ = descriptor_ < 0 || ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

namespace {

// A TMPDIR that is no folder is passed over, as Python's tempfile does.
std::filesystem::path temporary_place() {
  std::error_code error;
  const auto place = std::filesystem::temp_directory_path(error);
  return error ? std::filesystem::path("/tmp") : place;
}

}  // namespace

TemporaryFolder::TemporaryFolder(const std::string& purpose)
    : path_((temporary_place() / ("lightlora-" + purpose + "-XXXXXX")).string()) {
  TORCH_CHECK(::mkdtemp(path_.data()) != nullptr, "'", path_,
              "': expected a folder for a moment, got '", std::strerror(errno),
              "'; hint: is the disk full?");
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace sd
