// SPDX-License-Identifier: Apache-2.0
#include "training/checkpoint.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>

#include "support/cli/fmt.h"
#include "support/cli/process.h"

namespace training {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kLeftPrefix =
    "left-";  // before it: those that a resumed run went back beyond
constexpr const char* kCheckpointFile = "training_state.safetensors";
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
  return fmt::format("{}{}-{}-{}", kHiddenPrefix, step, purpose, cli::process_id());
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  TORCH_CHECK(!error, "'", to.string(), "': expected a name for the checkpoint, got '",
              error.message(), "'");
}

// Whether a run wrote it: also the names of other things are left alone.
bool is_checkpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error) && fs::exists(path / kCheckpointFile, error);
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
    std::error_code broken;  // a link to nothing or to itself is none
    if (step >= 0 && fs::is_directory(entry->path(), broken)) {
      found.push_back({step, entry->path().string()});
    }
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
  std::vector<std::string> names;
  for (const auto& checkpoint : all) names.push_back(fs::path(checkpoint.path).filename().string());
  const auto known = fmt::format("the output folder has {}", fmt::join(names, ", "));
  TORCH_CHECK(fs::is_directory(path), "'", wanted,
              "': expected a checkpoint folder for --resume_from_checkpoint, got ",
              fs::exists(path) ? "a file" : "nothing of that name",
              "; hint: ", names.empty() ? "the output folder has none" : known);
  if (path.filename().empty()) path = path.parent_path();  // a slash at the end
  return {std::max<int64_t>(0, number_after(path.filename().string(), kPrefix)), path.string()};
}

// The bytes that some published files have behind their tensors are none that a run writes.
lightlora::SafetensorsFile open_state(const std::string& path) {
  try {
    return lightlora::SafetensorsFile(path);
  } catch (const lightlora::SafetensorsError& error) {
    if (error.fault() != lightlora::SafetensorsFault::trailing_bytes) throw;
    const std::string message = error.what_without_backtrace();
    TORCH_CHECK(false, message.substr(0, message.find("; hint:")),
                "; hint: the checkpoint is damaged");
  }
}

lightlora::TensorMap load_numbers(const lightlora::SafetensorsFile& file) {
  auto state = file.load_all();
  for (const auto& [name, values] : state) {
    const bool good = !values.is_floating_point() || !values.isnan().any().item<bool>();
    TORCH_CHECK(good, "expected numbers as '", name, "', got NaN; hint: the checkpoint is damaged");
  }
  return state;
}

void save_checkpoint(const std::string& output_dir, int64_t step,
                     const std::function<void(const std::string& folder)>& write) {
  const fs::path parent = output_dir;
  const fs::path unfinished = parent / hidden_name(step, "unfinished");
  const fs::path target = parent / fmt::format("{}{}", kPrefix, step);
  std::error_code error;
  fs::remove_all(unfinished, error);
  fs::create_directory(unfinished, error);
  TORCH_CHECK(!error, "'", output_dir, "': expected a folder for checkpoints, got '",
              error.message(), "'");
  try {
    write(unfinished.string());
    sd::sync_folder(unfinished.string());
    if (fs::exists(target)) {
      TORCH_CHECK(is_checkpoint(target), "'", target.string(), "': expected a checkpoint or ",
                  "nothing of that name, got something else, which is not deleted");
      remove_checkpoint(parent, {step, target.string()});
    }
    rename_folder(unfinished, target);
  } catch (...) {
    fs::remove_all(unfinished, error);
    throw;
  }
  sd::sync_folder(output_dir);
}

void prune_checkpoints(const std::string& output_dir, int64_t limit,
                       const std::function<bool(const Checkpoint&)>& is_own) {
  std::vector<Checkpoint> own;
  for (const auto& checkpoint : list_checkpoints(output_dir)) {
    if (is_own(checkpoint)) own.push_back(checkpoint);
  }
  for (size_t i = 0; i + static_cast<size_t>(limit) < own.size(); ++i) {
    remove_checkpoint(output_dir, own[i]);
  }
}

std::vector<std::string> leave_checkpoints(const std::string& output_dir, int64_t step,
                                           const std::function<bool(const Checkpoint&)>& is_own) {
  std::vector<std::string> names;
  for (const auto& checkpoint : list_checkpoints(output_dir)) {
    if (checkpoint.step <= step || !is_own(checkpoint)) continue;
    const auto name = fmt::format("{}{}{}", kLeftPrefix, kPrefix, checkpoint.step);
    auto free = name;
    for (int64_t i = 2; fs::exists(fs::symlink_status(fs::path(output_dir) / free)); ++i) {
      free = fmt::format("{}-{}", name, i);
    }
    rename_folder(checkpoint.path, fs::path(output_dir) / free);
    names.push_back(free);
  }
  return names;
}

void remove_unfinished_checkpoints(const std::string& output_dir) {
  std::vector<fs::path> left;
  std::error_code error;
  for (fs::directory_iterator entry(output_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.rfind(kHiddenPrefix, 0) != 0) continue;
    const auto process = number_after(name.substr(name.rfind('-') + 1), "");
    const bool alive = process != cli::process_id() && cli::is_process_alive(process);
    if (!alive) left.push_back(entry->path());
  }
  for (const auto& path : left) fs::remove_all(path, error);
}

namespace {

bool has_results(const fs::path& folder) {
  std::error_code error;
  const auto lines = fs::file_size(folder / "metrics.jsonl", error);
  return (!error && lines > 0) || !list_checkpoints(folder.string()).empty();
}

// Files called prefix, numbers with dashes between them, and ending; or anything behind the prefix.
void remove_files(const fs::path& folder, const std::string& prefix,
                  const std::optional<std::string>& ending) {
  const auto is_meant = [&](const std::string& name) {
    if (name.rfind(prefix, 0) != 0) return false;
    if (!ending) return true;
    const auto last = name.find_first_not_of("0123456789-", prefix.size());
    return name.substr(std::min(last, name.size())) == *ending;
  };
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (is_meant(entry->path().filename().string())) files.push_back(entry->path());
  }
  for (const auto& file : files) fs::remove(file, error);
}

void remove_left_checkpoints(const fs::path& folder) {
  std::vector<fs::path> left;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const auto name = entry->path().filename().string();
    if (name.rfind(std::string(kLeftPrefix) + kPrefix, 0) == 0 && is_checkpoint(entry->path())) {
      left.push_back(entry->path());
    }
  }
  for (const auto& path : left) fs::remove_all(path, error);
}

// Whether a folder that a flag names, as `--logging_dir ../logs`, is a run's own.
bool is_inside(const fs::path& inner, const fs::path& outer) {
  std::error_code error;
  const fs::path relative =
      fs::weakly_canonical(inner, error).lexically_relative(fs::weakly_canonical(outer, error));
  return !error && !relative.empty() && *relative.begin() != "..";
}

// What a new run would not write over. A user's own file or folder may have such a name by chance.
void remove_results(const fs::path& folder, const RunOptions& options) {
  for (const auto& checkpoint : list_checkpoints(folder.string())) {
    if (is_checkpoint(checkpoint.path)) remove_checkpoint(folder, checkpoint);
  }
  remove_left_checkpoints(folder);
  remove_files(folder, "learned_embeds-steps-", ".safetensors");
  remove_files(folder, "contact_sheet.png", "");
  remove_files(folder / "validation", "step-", ".png");
  // A folder elsewhere may be shared with other runs, whose files have names of the same kind.
  const auto logs = folder / options.logging_dir;
  if (is_inside(logs, folder)) remove_files(logs, "events.out.tfevents.", std::nullopt);
}

// What a run ends with can be written: found now, and not after its last step.
void check_results(const fs::path& folder) {
  for (const char* name :
       {"lightlora.safetensors", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors",
        "metrics.jsonl", "config.toml", "README.md", "contact_sheet.png"}) {
    const lightlora::AtomicFile probe((folder / name).string());
  }
  const auto validation = folder / "validation";
  TORCH_CHECK(!fs::exists(validation) || fs::is_directory(validation), "'", validation.string(),
              "': expected a folder or nothing, got a file");
}

}  // namespace

OutputFolder::OutputFolder(const RunOptions& options, bool goes_on) {
  const fs::path folder = options.output_dir;
  std::error_code error;
  fs::create_directories(folder, error);
  TORCH_CHECK(fs::is_directory(folder), "'", folder.string(),
              "': expected a folder for --output_dir that can be made, got '",
              error ? error.message() : "a file of that name", "'");
  check_results(folder);
  lock_.emplace(folder.string());
  TORCH_CHECK(lock_->held(), "'", folder.string(),
              "': expected a folder of this run alone, got one in which ",
              "another run is at work; hint: another --output_dir");
  if (goes_on || !has_results(folder)) return;
  TORCH_CHECK(
      options.overwrite_output_dir, "'", folder.string(), "': expected a folder without results, ",
      "got those of an earlier run; hint: --resume_from_checkpoint latest goes on from its ",
      "checkpoints, --overwrite_output_dir removes them, or take another --output_dir");
  remove_results(folder, options);
}

}  // namespace training
