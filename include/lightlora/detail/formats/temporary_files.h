// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

// Where a file is written before it gets its name, and what killed processes leave there.

namespace lightlora::detail {

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

}  // namespace lightlora::detail
