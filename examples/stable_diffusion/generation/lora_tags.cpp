// SPDX-License-Identifier: Apache-2.0
#include "generation/lora_tags.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "support/cli/app.h"
#include "support/cli/fmt.h"

namespace generation {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kShownNames = 8;

std::optional<double> number_in(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value)) return std::nullopt;
  return value;
}

// The weights at the end of a tag's content, which are taken off it: up to two numbers, the text
// encoder's first, or te=... and unet=....
std::vector<double> take_weights(std::string& content) {
  std::optional<double> text_encoder, unet;
  std::vector<double> plain;
  for (;;) {
    const auto colon = content.rfind(':');
    if (colon == std::string::npos) break;
    const std::string last = content.substr(colon + 1);
    const bool names_text = last.rfind("te=", 0) == 0, names_unet = last.rfind("unet=", 0) == 0;
    const auto value = number_in(names_text ? last.substr(3) : names_unet ? last.substr(5) : last);
    if (!value || (!names_text && !names_unet && plain.size() == 2)) break;
    if (names_text) {
      text_encoder = value;
    } else if (names_unet) {
      unet = value;
    } else {
      plain.insert(plain.begin(), *value);
    }
    content.resize(colon);
  }
  if (plain.empty() && (text_encoder || unet)) plain.push_back(text_encoder.value_or(1.0));
  if (text_encoder) plain.front() = *text_encoder;
  if (unet) plain = {plain.front(), *unet};
  return plain;
}

sd::LoRAChoice parse_tag(const std::string& tag, const std::string& content) {
  sd::LoRAChoice choice{content};
  const auto weights = take_weights(choice.path);
  const auto colon = choice.path.find(':');
  TORCH_CHECK_VALUE(!weights.empty() || colon == std::string::npos, "'", tag,
                    "': expected one number behind the name, got '",
                    content.substr(std::min(colon, content.size() - 1) + 1),
                    "'; hint: <lora:name:0.8>, or <lora:name:0.5:0.8> for text encoder and UNet");
  if (!weights.empty()) choice.weight = weights.back();
  if (weights.size() == 2 && weights[0] != weights[1]) choice.text_encoder_weight = weights[0];
  TORCH_CHECK_VALUE(!choice.path.empty(), "'", tag, "': expected a name, got none");
  return choice;
}

bool is_lora(const fs::directory_entry& entry) {
  std::error_code broken;
  if (entry.is_directory(broken)) return fs::exists(entry.path() / "adapter_config.json");
  return entry.path().extension() == ".safetensors";
}

// The LoRA files below a folder, relative to it, in order.
std::vector<fs::path> loras_below(const std::string& folder) {
  TORCH_CHECK(fs::is_directory(folder), "--lora_dir: expected a folder, got '", folder, "'");
  std::vector<fs::path> found;
  const auto options = fs::directory_options::skip_permission_denied |
                       fs::directory_options::follow_directory_symlink;
  std::set<std::string> seen{fs::canonical(folder).string()};  // links may lead back
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, options, error), end; !error && entry != end;
       entry.increment(error)) {
    if (is_lora(*entry)) found.push_back(entry->path().lexically_relative(folder));
    std::error_code broken;
    if (!entry->is_directory(broken)) {  // nor is a link to nothing or to itself an error
      entry.disable_recursion_pending();
      continue;
    }
    const auto real = fs::canonical(entry->path(), broken).string();
    if (broken || !seen.insert(real).second) entry.disable_recursion_pending();
  }
  TORCH_CHECK(!error, "'", folder,
              "': expected a readable folder, got the error: ", error.message());
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

// A tag ends at a '>' and a prompt's line at its end.
std::string lora_tag(const sd::LoRAChoice& choice) {
  std::string name = lora_stem(choice.path);
  for (char& c : name) {
    if (c == '<' || c == '>' || c == '\n' || c == '\r') c = '_';
  }
  if (!choice.text_encoder_weight) return fmt::format("<lora:{}:{}>", name, choice.weight);
  return fmt::format("<lora:{}:{}:{}>", name, *choice.text_encoder_weight, choice.weight);
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
    } else if (inner.rfind("hypernet:", 0) == 0) {
      result.text += prompt.substr(at, open - at);
      result.unused.push_back("<" + inner + ">");
      at = close + 1;
    } else {
      result.text += prompt.substr(at, open + 1 - at);
      at = open + 1;
    }
  }
  result.text += prompt.substr(at);
  return result;
}

std::string find_lora(const std::string& name, const std::string& folder) {
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
