// SPDX-License-Identifier: Apache-2.0
#include "training/run_log.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <charconv>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/images/file.h"
#include "support/images/load.h"

namespace training {

namespace {

// The step of a line that a run wrote; the largest number for anything else.
int64_t step_of(const std::string& line) {
  const std::string start = "{\"step\":";
  if (line.rfind(start, 0) != 0 || line.back() != '}') return INT64_MAX;
  int64_t step = INT64_MAX;
  std::from_chars(line.data() + start.size(), line.data() + line.size(), step);
  return step;
}

// The lines of a metrics file up to a step; half a line at the end, of a killed run, is dropped.
std::string lines_up_to(const std::string& path, int64_t step) {
  if (!std::filesystem::exists(path)) return "";
  constexpr uint64_t kMostBytes = 1'000'000'000;
  std::istringstream file(lightlora::read_file(path, kMostBytes));
  std::string kept, line;
  while (std::getline(file, line)) {
    if (step_of(line) <= step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

RunLog::RunLog(const std::string& output_dir, const std::string& tensorboard_folder,
               int64_t first_step)
    : metrics_path_((std::filesystem::path(output_dir) / "metrics.jsonl").string()) {
  const std::string kept = first_step > 0 ? lines_up_to(metrics_path_, first_step) : "";
  lightlora::AtomicFile file(metrics_path_);
  file.write(kept);
  file.commit();
  metrics_.open(metrics_path_, std::ios::app);
  if (!tensorboard_folder.empty()) tensorboard_.emplace(tensorboard_folder, first_step);
}

void RunLog::add(int64_t step, const Numbers& numbers) {
  if (!metrics_.is_open()) return;
  nlohmann::ordered_json line{{"step", step}};
  for (const auto& [name, value] : numbers) {
    line[name] = value;
    if (tensorboard_) tensorboard_->add_scalar(name, value, step);
  }
  metrics_ << line.dump() << "\n" << std::flush;
  TORCH_CHECK(metrics_, "'", metrics_path_, "': expected to add to the file, got '",
              std::strerror(errno), "'");
}

void RunLog::add_picture(const std::string& tag, const std::string& path, int64_t step) {
  if (!tensorboard_) return;
  const auto bytes = images::read_file(path);
  const auto picture = images::decode_image(bytes, path);
  tensorboard_->add_image(tag, {bytes.begin(), bytes.end()}, picture.width, picture.height, step);
}

}  // namespace training
