// SPDX-License-Identifier: Apache-2.0
#include "training/run_log.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/images/file.h"
#include "support/images/load.h"

namespace training {

namespace {

// The lines of a metrics file up to a step; half a line at the end, of a killed run, is dropped.
std::string lines_up_to(const std::string& path, int64_t step) {
  std::ifstream file(path);
  std::string kept, line;
  while (std::getline(file, line)) {
    const auto entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (entry.is_object() && entry.value("step", INT64_MAX) <= step) kept += line + "\n";
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
