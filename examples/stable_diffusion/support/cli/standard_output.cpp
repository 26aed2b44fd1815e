// SPDX-License-Identifier: Apache-2.0
#include "support/cli/standard_output.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iostream>

namespace cli {

namespace {

// Tests of the programs' functions put a buffer of their own in its place, which stays.
const std::streambuf* const initial_buffer = std::cout.rdbuf();

// As a stream that always succeeds: the first error is kept, and nothing is written after it.
ssize_t write_all(void* cookie, const char* bytes, size_t size) {
  int& error = *static_cast<int*>(cookie);
  for (size_t done = 0; done < size && error == 0;) {
    const ssize_t count = ::write(STDOUT_FILENO, bytes + done, size - done);
    if (count < 0 && errno != EINTR) error = errno;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return static_cast<ssize_t>(size);
}

// std::cout through whatever stdout is, so that both keep their order.
class ToStdout : public std::streambuf {
 protected:
  int_type overflow(int_type c) override {
    return traits_type::eq_int_type(c, traits_type::eof()) ? traits_type::not_eof(c)
                                                           : std::fputc(c, stdout);
  }
  std::streamsize xsputn(const char* text, std::streamsize count) override {
    return static_cast<std::streamsize>(
        std::fwrite(text, 1, static_cast<std::size_t>(count), stdout));
  }
  int sync() override { return std::fflush(stdout); }
};

}  // namespace

StandardOutput::StandardOutput() {
  if (std::cout.rdbuf() != initial_buffer) return;
  std::cout.flush();
  std::fflush(stdout);
  cookie_io_functions_t functions = {};
  functions.write = write_all;
  own_ = ::fopencookie(&error_, "w", functions);
  if (own_ == nullptr) return;
  std::setvbuf(own_, nullptr, ::isatty(STDOUT_FILENO) == 1 ? _IOLBF : _IOFBF, BUFSIZ);
  before_ = stdout;
  stdout = own_;
  buffer_ = std::make_unique<ToStdout>();
  buffer_before_ = std::cout.rdbuf(buffer_.get());
}

StandardOutput::~StandardOutput() {
  if (own_ == nullptr) return;
  finish();
  std::cout.rdbuf(buffer_before_);
  stdout = before_;
  std::fclose(own_);
}

std::string StandardOutput::finish() {
  if (own_ == nullptr) return "";
  std::cout.flush();
  std::fflush(own_);
  const bool gone = error_ == EPIPE || error_ == EIO;
  return error_ == 0 || gone ? "" : std::strerror(error_);
}

bool standard_output_is_terminal() {
  const char* term = std::getenv("TERM");
  return ::isatty(STDOUT_FILENO) == 1 && term != nullptr && std::string(term) != "dumb";
}

int64_t terminal_columns() {
  winsize size = {};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void silence_standard_output() {
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere < 0) return;
  ::dup2(nowhere, STDOUT_FILENO);
  ::close(nowhere);
}

}  // namespace cli
