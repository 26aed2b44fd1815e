// SPDX-License-Identifier: Apache-2.0
#include "support/cli/process.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>
#include <system_error>

namespace cli {

int64_t process_id() { return ::getpid(); }

bool is_process_alive(int64_t id) { return id > 0 && ::kill(static_cast<pid_t>(id), 0) == 0; }

std::string machine_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

int64_t machine_memory() {
  return int64_t{::sysconf(_SC_PHYS_PAGES)} * int64_t{::sysconf(_SC_PAGE_SIZE)};
}

int64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * ::sysconf(_SC_PAGE_SIZE);
}

int64_t peak_resident_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    int64_t kilobytes = 0;
    std::istringstream(line.substr(6)) >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

std::filesystem::path program_path() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) return program;
  const auto* called = reinterpret_cast<const char*>(::getauxval(AT_EXECFN));
  return called == nullptr ? "" : called;
}

void set_default_variable(const char* name, const char* value) {
  ::setenv(name, value, /*overwrite=*/0);
}

void end_process(int status, std::string_view last_words) {
  // What cannot be written cannot be said anywhere else either.
  if (::write(STDERR_FILENO, last_words.data(), last_words.size()) < 0) ::_exit(status);
  ::_exit(status);
}

}  // namespace cli
