// SPDX-License-Identifier: Apache-2.0
#include "support/files/scratch_mapping.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "support/files/disk.h"

namespace sd {

namespace {

// Without a name from the start where the file system can do that; else its name goes at once.
int open_nameless(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
  std::string path = folder + "/.weights-XXXXXX";
  const int named = ::mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(path.c_str());
  return named;
}

}  // namespace

ScratchMapping::ScratchMapping(const std::string& folder, std::size_t bytes)
    : size_(std::max<std::size_t>(bytes, 1)) {
  require_space(folder, static_cast<int64_t>(size_), "weights that do not stay in memory");
  const int file = open_nameless(folder);
  TORCH_CHECK(file >= 0, "'", folder, "': expected a folder in which a file can be made, got '",
              std::strerror(errno), "'");
  // A page without room on the disk would end the process when it is written.
  const int error = ::posix_fallocate(file, 0, static_cast<off_t>(size_));
  void* address =
      error == 0 ? ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  const int reason = error != 0 ? error : errno;
  ::close(file);
  TORCH_CHECK(address != MAP_FAILED, "'", folder, "': expected room for ", size_,
              " bytes of weights, got '", std::strerror(reason), "'");
  data_ = address;
}

ScratchMapping::~ScratchMapping() { ::munmap(data_, size_); }

void ScratchMapping::release(bool written) const {
  if (written) ::msync(data_, size_, MS_SYNC);
  ::madvise(data_, size_, MADV_DONTNEED);
}

}  // namespace sd
