// SPDX-License-Identifier: Apache-2.0
#include "pipeline/single_file_parts.h"

#include <lightlora/file_io.h>

#include <nlohmann/json.hpp>

#include "support/files/limits.h"

namespace sd::single_file {

namespace fs = std::filesystem;

namespace {

std::string read_text(const fs::path& path) {
  return lightlora::read_file(path.string(), limits::kJsonBytes);
}

}  // namespace

std::string tokenizer_key(const std::string& name) { return "lightlora." + name; }

bool begins(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

std::string config_file(const std::string& folder, const std::string& part) {
  if (part == "model_index") return (fs::path(folder) / "model_index.json").string();
  const std::string name = part == "scheduler" ? "scheduler_config.json" : "config.json";
  return (fs::path(folder) / part / name).string();
}

nlohmann::json texts_of_tokenizer(const fs::path& folder) {
  auto texts = nlohmann::json::object();
  for (const char* name : tokenizer_files) {
    if (fs::exists(folder / name)) texts[name] = read_text(folder / name);
  }
  return texts;
}

}  // namespace sd::single_file
