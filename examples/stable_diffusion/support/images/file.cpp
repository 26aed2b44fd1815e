// SPDX-License-Identifier: Apache-2.0
#include "support/images/file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace images {

namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

std::vector<uint8_t> read_file(const std::string& path, int64_t limit) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat info = {};
  const bool open = file.number() >= 0 && ::fstat(file.number(), &info) == 0;
  TORCH_CHECK(open, "'", path,
              "': expected a readable file, got the error: ", std::strerror(errno));
  TORCH_CHECK(!S_ISDIR(info.st_mode), "'", path, "': expected a file, got a folder");
  TORCH_CHECK(S_ISREG(info.st_mode), "'", path, "': expected a file, got a device or a pipe");
  std::vector<uint8_t> bytes(static_cast<std::size_t>(std::min<int64_t>(info.st_size, limit)));
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::read(file.number(), bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    TORCH_CHECK(count >= 0, "'", path,
                "': expected a readable file, got the error: ", std::strerror(errno));
    if (count == 0) bytes.resize(done);  // it shrank meanwhile
    done += static_cast<std::size_t>(count);
  }
  return bytes;
}

}  // namespace images
