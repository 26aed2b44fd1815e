// SPDX-License-Identifier: Apache-2.0
// sd-scripts' files of prompts to draw while training: lines, TOML or JSON.
#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>

#include "support/cli/fmt.h"
#include "support/cli/toml_text.h"
#include "support/files/json_file.h"
#include "training/validation.h"

namespace training {

namespace {

constexpr uint64_t kMostBytes = 1'000'000;

// The words behind a prompt, and the keys of TOML and JSON that say the same.
constexpr std::pair<const char*, const char*> kWords[] = {
    {"n", "negative_prompt"}, {"w", "width"},       {"h", "height"}, {"d", "seed"},
    {"l", "scale"},           {"s", "sample_steps"}};

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

template <typename Number>
Number number_of(const std::string& text, const std::string& where, const std::string& name) {
  Number value{};
  const auto* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  TORCH_CHECK(
      read.ec == std::errc() && read.ptr == end && std::isfinite(static_cast<double>(value)), where,
      ": expected a number as ", name, ", got '", text, "'");
  return value;
}

// -1 is a new one, as everywhere.
uint64_t seed_of(const std::string& text, const std::string& where, const std::string& name) {
  return text == "-1" ? std::random_device()() : number_of<uint64_t>(text, where, name);
}

// One setting of a prompt by its key; `name` is what the file calls it. False for an unknown key.
bool read_setting(const std::string& key, const std::string& value, const std::string& where,
                  const std::string& name, SamplePrompt& sample) {
  const auto whole = [&] {
    const auto number = number_of<int64_t>(value, where, name);
    TORCH_CHECK(number >= 1, where, ": expected a positive number as ", name, ", got ", number);
    return number;
  };
  if (key == "negative_prompt") {
    sample.negative_prompt = value;
  } else if (key == "width") {
    sample.width = whole();
  } else if (key == "height") {
    sample.height = whole();
  } else if (key == "seed") {
    sample.seed = seed_of(value, where, name);
  } else if (key == "sample_steps") {
    sample.steps = whole();
  } else if (key == "scale") {
    sample.guidance_scale = number_of<double>(value, where, name);
  } else {
    return false;
  }
  return true;
}

// One "word value" of what follows a prompt.
void read_word(const std::string& text, const std::string& where, SamplePrompt& sample) {
  const auto space = text.find(' ');
  const std::string word = text.substr(0, space);
  const std::string value = space == std::string::npos ? "" : trimmed(text.substr(space));
  for (const auto& [known, key] : kWords) {
    if (word == known && read_setting(key, value, where, "--" + word, sample)) return;
  }
  TORCH_CHECK(false, where, ": expected --n, --w, --h, --d, --l or --s behind the prompt, got --",
              word);
}

SamplePrompt read_line(const std::string& line, const std::string& where, uint64_t seed) {
  SamplePrompt sample;
  sample.seed = seed;
  auto mark = line.find(" --");
  sample.prompt = trimmed(line.substr(0, mark));
  while (mark != std::string::npos) {
    const auto begin = mark + 3;
    mark = line.find(" --", begin);
    read_word(trimmed(line.substr(begin, mark - begin)), where, sample);
  }
  return sample;
}

std::vector<SamplePrompt> read_lines(const std::string& path, uint64_t seed) {
  std::istringstream file(read_text(path, kMostBytes));
  std::vector<SamplePrompt> samples;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    line = trimmed(line);
    if (line.empty() || line[0] == '#') continue;
    samples.push_back(
        read_line(line, fmt::format("'{}' line {}", path, number), seed + samples.size()));
  }
  return samples;
}

// A prompt as an object of JSON, which TOML's tables are made into as well.
SamplePrompt read_object(const nlohmann::json& object, const std::string& where, uint64_t seed) {
  if (object.is_string()) return read_line(trimmed(object.get<std::string>()), where, seed);
  TORCH_CHECK(object.is_object(), where, ": expected a prompt or its settings, got ",
              object.type_name());
  const auto text = object.find("prompt");
  TORCH_CHECK(text != object.end() && text->is_string(), where,
              ": expected a text as 'prompt', got ", text == object.end() ? "none" : text->dump());
  SamplePrompt sample;
  sample.seed = seed;
  sample.prompt = text->get<std::string>();
  for (const auto& [key, value] : object.items()) {
    if (key == "prompt") continue;
    const bool is_text = key == "negative_prompt";
    TORCH_CHECK(is_text ? value.is_string() : value.is_number() || value.is_string(), where,
                ": expected ", is_text ? "a text" : "a number", " as '", key, "', got ",
                value.dump());
    const auto word = value.is_string() ? value.get<std::string>() : value.dump();
    TORCH_CHECK(read_setting(key, word, where, "'" + key + "'", sample), where,
                ": expected prompt, negative_prompt, width, height, seed, scale or sample_steps, ",
                "got '", key, "'");
  }
  return sample;
}

std::vector<SamplePrompt> read_objects(const nlohmann::json& list, const std::string& path,
                                       uint64_t seed) {
  std::vector<SamplePrompt> samples;
  for (const auto& object : list) {
    const auto where = fmt::format("'{}' prompt {}", path, samples.size() + 1);
    samples.push_back(read_object(object, where, seed + samples.size()));
  }
  return samples;
}

std::vector<SamplePrompt> read_json(const std::string& path, uint64_t seed) {
  const auto list = sd::parse_json(read_text(path, kMostBytes), fmt::format("'{}'", path));
  TORCH_CHECK(list.is_array(), "'", path, "': expected a list of prompts, got ", list.type_name());
  return read_objects(list, path, seed);
}

// The values of a table that can say something about a prompt.
nlohmann::json object_of(const toml::table& table, const std::string& path) {
  nlohmann::json object = nlohmann::json::object();
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (const auto* text = node.as_string()) {
      object[name] = text->get();
    } else if (const auto* whole = node.as_integer()) {
      object[name] = whole->get();
    } else if (const auto* number = node.as_floating_point()) {
      object[name] = number->get();
    } else {
      TORCH_CHECK(name == "subset", "'", path, "' line ", node.source().begin.line,
                  ": expected a text or a number as '", name, "'");
    }
  }
  return object;
}

// `[prompt]` with what all have in common, and a `[[prompt.subset]]` for each.
std::vector<SamplePrompt> read_table(const std::string& path, uint64_t seed) {
  const toml::table file = cli::parse_toml(path);
  const auto* common = file.get_as<toml::table>("prompt");
  const auto* subsets = common == nullptr ? nullptr : common->get_as<toml::array>("subset");
  TORCH_CHECK(subsets != nullptr && file.size() == 1, "'", path,
              "': expected [prompt] with a [[prompt.subset]] for each prompt and nothing else");
  nlohmann::json list = nlohmann::json::array();
  for (std::size_t i = 0; i < subsets->size(); ++i) {
    const auto* subset = subsets->get_as<toml::table>(i);
    TORCH_CHECK(subset != nullptr, "'", path, "': expected tables as 'subset'");
    auto object = object_of(*common, path);
    object.update(object_of(*subset, path));
    list.push_back(std::move(object));
  }
  return read_objects(list, path, seed);
}

}  // namespace

std::vector<SamplePrompt> read_sample_prompts(const std::string& path, uint64_t seed) {
  TORCH_CHECK(std::filesystem::exists(path), "'", path,
              "': expected a file of prompts, got nothing of that name; hint: check ",
              "--sample_prompts");
  const auto ending = std::filesystem::path(path).extension();
  const auto samples = ending == ".toml"   ? read_table(path, seed)
                       : ending == ".json" ? read_json(path, seed)
                                           : read_lines(path, seed);
  TORCH_CHECK(!samples.empty(), "'", path, "': expected a prompt, got none");
  return samples;
}

}  // namespace training
