// SPDX-License-Identifier: Apache-2.0
#include "support/files/outputs.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <filesystem>
#include <map>
#include <system_error>

#include "support/files/disk.h"

namespace sd {

namespace {

namespace fs = std::filesystem;

// A full disk lets files be made and not filled.
constexpr std::size_t kProbeBytes = 4096;

// One spelling for each file, whether it exists or not.
std::string canonical(const std::string& path) {
  std::error_code error;
  const auto result = fs::weakly_canonical(fs::absolute(path, error), error);
  return error ? path : result.string();
}

}  // namespace

void Outputs::add(const std::string& flag, const std::string& path, int64_t bytes) {
  if (!path.empty()) files_.push_back({flag, path, bytes});
}

void Outputs::add_folder(const std::string& flag, const std::string& path) {
  if (!path.empty()) folders_.emplace_back(flag, path);
}

// Files of one folder share a disk; those of others may.
void Outputs::check_space() const {
  std::map<std::string, int64_t> bytes;
  for (const auto& file : files_) bytes[fs::path(file.path).parent_path().string()] += file.bytes;
  for (const auto& file : files_) {
    const int64_t all = bytes[fs::path(file.path).parent_path().string()];
    require_space(file.path, all, file.flag);
  }
}

void Outputs::check() const {
  check_space();
  std::map<std::string, std::string> taken;
  for (const auto& [flag, path, bytes] : files_) {
    lightlora::AtomicFile probe(path);  // and gone again
    probe.reserve(kProbeBytes);
    probe.write(std::string(kProbeBytes, '\0'));
    const auto [other, is_new] = taken.emplace(canonical(path), flag);
    TORCH_CHECK(is_new, "'", path, "': expected a file of its own for ", flag, ", got the one of ",
                other->second);
  }
  for (const auto& [flag, path] : folders_) {
    std::error_code error;
    fs::path existing = fs::absolute(path, error);
    while (!fs::exists(existing, error) && existing.has_parent_path() &&
           existing != existing.parent_path()) {
      TORCH_CHECK(!error, "'", path, "': expected the name of a folder for ", flag, ", got '",
                  error.message(), "'");
      existing = existing.parent_path();
    }
    TORCH_CHECK(fs::is_directory(existing, error), "'", path, "': expected a folder for ", flag,
                ", got a file of that name");
    const std::string problem = why_not_writable(existing.string());
    TORCH_CHECK(problem.empty(), "'", path, "': expected a folder for ", flag,
                " that can be written to, got '", problem, "'");
  }
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  TORCH_CHECK(!error && fs::is_directory(path), "'", path,
              "': expected a folder that can be made, got '",
              error ? error.message() : "a file of that name", "'");
}

}  // namespace sd
