// SPDX-License-Identifier: Apache-2.0
#include "generation/lora_tags.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "support/cli/app.h"
#include "support/cli/fmt.h"

namespace generation {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kShownNames = 8;

sd::LoRAChoice parse_tag(const std::string& tag, const std::string& content) {
  const auto colon = content.find(':');
  sd::LoRAChoice choice{content.substr(0, colon), 1.0};
  if (colon != std::string::npos) {
    const std::string number = content.substr(colon + 1);
    char* end = nullptr;
    choice.weight = std::strtod(number.c_str(), &end);
    TORCH_CHECK_VALUE(!number.empty() && *end == '\0' && std::isfinite(choice.weight), "'", tag,
                      "': expected one number behind the name, got '", number,
                      "'; hint: <lora:name:0.8>, one weight for all models");
  }
  TORCH_CHECK_VALUE(!choice.path.empty(), "'", tag, "': expected a name, got none");
  return choice;
}

bool is_lora(const fs::directory_entry& entry) {
  if (entry.is_directory()) return fs::exists(entry.path() / "adapter_config.json");
  return entry.path().extension() == ".safetensors";
}

// The LoRA files below a folder, relative to it, in order.
std::vector<fs::path> loras_below(const std::string& folder) {
  TORCH_CHECK(fs::is_directory(folder), "--lora_dir: expected a folder, got '", folder, "'");
  std::vector<fs::path> found;
  const auto options = fs::directory_options::skip_permission_denied |
                       fs::directory_options::follow_directory_symlink;
  for (const auto& entry : fs::recursive_directory_iterator(folder, options)) {
    if (is_lora(entry)) found.push_back(entry.path().lexically_relative(folder));
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string hint_for(const std::string& name, const std::vector<std::string>& stems,
                     const std::string& folder) {
  if (folder.empty()) return "give the folder of your LoRA files as --lora_dir";
  if (stems.empty()) return fmt::format("'{}' holds no LoRA files", folder);
  const std::string near = cli::closest(name, stems);
  if (!near.empty()) return fmt::format("did you mean '{}'?", near);
  const auto end = stems.begin() + static_cast<std::ptrdiff_t>(std::min(stems.size(), kShownNames));
  return fmt::format("there are {}{}", fmt::join(stems.begin(), end, ", "),
                     stems.size() > kShownNames ? ", ..." : "");
}

}  // namespace

std::string lora_stem(const std::string& path) {
  const fs::path clean = fs::path(path).lexically_normal();
  return (clean.has_filename() ? clean : clean.parent_path()).stem().string();
}

TaggedPrompt take_lora_tags(const std::string& prompt) {
  TaggedPrompt result;
  std::size_t at = 0;
  while (at < prompt.size()) {
    const auto open = prompt.find('<', at);
    const auto close = prompt.find('>', open == std::string::npos ? at : open);
    if (open == std::string::npos || close == std::string::npos) break;
    const std::string inner = prompt.substr(open + 1, close - open - 1);
    if (inner.rfind("lora:", 0) == 0 || inner.rfind("lyco:", 0) == 0) {
      result.text += prompt.substr(at, open - at);
      result.tags.push_back(parse_tag("<" + inner + ">", inner.substr(5)));
      at = close + 1;
    } else {
      result.text += prompt.substr(at, open + 1 - at);
      at = open + 1;
    }
  }
  result.text += prompt.substr(at);
  return result;
}

std::string find_lora(const std::string& name, const std::string& folder,
                      const std::vector<std::string>& known) {
  for (const auto& path : known) {
    if (lora_stem(path) == name && fs::exists(path)) return path;
  }
  std::vector<std::string> stems, found;
  for (const auto& path : folder.empty() ? std::vector<fs::path>() : loras_below(folder)) {
    const std::string without = (path.parent_path() / path.stem()).generic_string();
    const bool fits = path.stem() == name || without == name || path.generic_string() == name;
    if (fits) found.push_back(path.generic_string());
    stems.push_back(path.stem().string());
  }
  TORCH_CHECK(!found.empty(), "'<lora:", name, ">': expected a LoRA file of this name, got none; ",
              "hint: ", hint_for(name, stems, folder));
  TORCH_CHECK(found.size() == 1, "'<lora:", name, ">': expected one LoRA file of this name, got '",
              found[0], "' and '", found[1], "'; hint: write the folder too");
  return (fs::path(folder) / found[0]).string();
}

}  // namespace generation
