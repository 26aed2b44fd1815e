// SPDX-License-Identifier: Apache-2.0
#include "training/checkpoint.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <lightlora/file_io.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

namespace training {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
// Folders that are being written or removed end in the number of the process that does it.
constexpr const char* kHiddenPrefix = ".checkpoint-";

int64_t number_after(const std::string& name, const std::string& prefix) {
  if (name.rfind(prefix, 0) != 0) return -1;
  int64_t number = -1;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, number);
  return error == std::errc() && rest == end ? number : -1;
}

std::string hidden_name(int64_t step, const char* purpose) {
  return kHiddenPrefix + std::to_string(step) + "-" + purpose + "-" + std::to_string(::getpid());
}

// Makes a rename survive a power cut.
void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  TORCH_CHECK(!error, "'", to.string(), "': expected a name for the checkpoint, got '",
              error.message(), "'");
}

// Takes the name away in one step, so that nobody ever sees half a checkpoint.
void remove_checkpoint(const fs::path& output_dir, const Checkpoint& checkpoint) {
  const fs::path hidden = output_dir / hidden_name(checkpoint.step, "removed");
  rename_folder(checkpoint.path, hidden);
  std::error_code ignored;
  fs::remove_all(hidden, ignored);
}

}  // namespace

std::vector<Checkpoint> list_checkpoints(const std::string& output_dir) {
  std::vector<Checkpoint> found;
  std::error_code error;
  for (fs::directory_iterator entry(output_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    const int64_t step = number_after(entry->path().filename().string(), kPrefix);
    if (step >= 0 && fs::is_directory(entry->path())) found.push_back({step, entry->path().string()});
  }
  std::sort(found.begin(), found.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return found;
}

Checkpoint find_checkpoint(const std::string& output_dir, const std::string& wanted) {
  const auto all = list_checkpoints(output_dir);
  if (wanted == "latest") return all.empty() ? Checkpoint{} : all.back();
  fs::path path = wanted;
  if (!fs::exists(path)) path = fs::path(output_dir) / wanted;
  std::string known;
  for (const auto& checkpoint : all) {
    known += (known.empty() ? "" : ", ") + fs::path(checkpoint.path).filename().string();
  }
  TORCH_CHECK(fs::is_directory(path), "'", wanted,
              "': expected a checkpoint folder for --resume_from_checkpoint, got ",
              fs::exists(path) ? "a file" : "nothing of that name", "; hint: ",
              known.empty() ? "the output folder has none" : "the output folder has " + known);
  if (path.filename().empty()) path = path.parent_path();  // a slash at the end
  return {std::max<int64_t>(0, number_after(path.filename().string(), kPrefix)), path.string()};
}

void save_checkpoint(const std::string& output_dir, int64_t step,
                     const std::function<void(const std::string& folder)>& write) {
  const fs::path parent = output_dir;
  const fs::path unfinished = parent / hidden_name(step, "unfinished");
  const fs::path target = parent / (kPrefix + std::to_string(step));
  std::error_code error;
  fs::remove_all(unfinished, error);
  fs::create_directory(unfinished, error);
  TORCH_CHECK(!error, "'", output_dir, "': expected a folder for checkpoints, got '",
              error.message(), "'");
  try {
    write(unfinished.string());
    sync_folder(unfinished);
    if (fs::exists(target)) remove_checkpoint(parent, {step, target.string()});
    rename_folder(unfinished, target);
  } catch (...) {
    fs::remove_all(unfinished, error);
    throw;
  }
  sync_folder(parent);
}

void prune_checkpoints(const std::string& output_dir, int64_t limit) {
  const auto all = list_checkpoints(output_dir);
  for (size_t i = 0; i + static_cast<size_t>(limit) < all.size(); ++i) {
    remove_checkpoint(output_dir, all[i]);
  }
}

void remove_unfinished_checkpoints(const std::string& output_dir) {
  std::vector<fs::path> left;
  std::error_code error;
  for (fs::directory_iterator entry(output_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.rfind(kHiddenPrefix, 0) != 0) continue;
    const auto process = number_after(name.substr(name.rfind('-') + 1), "");
    const bool alive = process > 0 && process != ::getpid() &&
                       ::kill(static_cast<pid_t>(process), 0) == 0;
    if (!alive) left.push_back(entry->path());
  }
  for (const auto& path : left) fs::remove_all(path, error);
}

void prepare_output_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  TORCH_CHECK(fs::is_directory(folder), "'", folder,
              "': expected a folder for --output_dir that can be made, got '",
              error ? error.message() : "a file of that name", "'");
  lightlora::AtomicFile probe((fs::path(folder) / ".lightlora-probe").string());
}

}  // namespace training
