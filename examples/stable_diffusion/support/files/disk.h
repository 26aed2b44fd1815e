// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

// What the system says of folders and of the disk below them.

namespace sd {

/// Why no file can be made in a folder, in the system's words; empty if one can.
std::string why_not_writable(const std::string& folder);

/// Free bytes for files below a path, which need not exist yet; the largest number if the system does
/// not tell.
int64_t free_bytes(const std::string& path);

/// Errors: c10::Error with both numbers if `bytes` would not fit below a path; `what` says what they
/// are, `hint` what to do
void require_space(const std::string& path, int64_t bytes, const std::string& what,
                   const std::string& hint = "the disk is full");

/// Makes a new name in a folder survive a power cut.
void sync_folder(const std::string& folder);

/// A folder that one process at a time holds, until it ends in whatever way. Nothing is written there.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  /// False if another process has the folder. A file system without locks gives it to everybody.
  bool held() const { return held_; }

 private:
  int descriptor_ = -1;
  bool held_ = true;
};

/// A new folder for a moment, which goes with what is in it.
class TemporaryFolder {
 public:
  /// `purpose` is a part of its name.
  /// Errors: c10::Error if it cannot be made
  explicit TemporaryFolder(const std::string& purpose);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace sd
