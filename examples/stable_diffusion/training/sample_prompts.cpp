// SPDX-License-Identifier: Apache-2.0
// sd-scripts' file of prompts to draw while training.
#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "support/cli/fmt.h"
#include "training/validation.h"

namespace training {

namespace {

constexpr uint64_t kMostBytes = 1'000'000;

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

template <typename Number>
Number number_of(const std::string& text, const std::string& where, const char* word) {
  Number value{};
  const auto* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  TORCH_CHECK(
      read.ec == std::errc() && read.ptr == end && std::isfinite(static_cast<double>(value)), where,
      ": expected a number behind --", word, ", got '", text, "'");
  return value;
}

// One "word value" of what follows a prompt.
void read_setting(const std::string& text, const std::string& where, SamplePrompt& sample) {
  const auto space = text.find(' ');
  const std::string word = text.substr(0, space);
  const std::string value = space == std::string::npos ? "" : trimmed(text.substr(space));
  const auto whole = [&] {
    const auto number = number_of<int64_t>(value, where, word.c_str());
    TORCH_CHECK(number >= 1, where, ": expected a positive number behind --", word, ", got ",
                number);
    return number;
  };
  if (word == "n") {
    sample.negative_prompt = value;
  } else if (word == "w") {
    sample.width = whole();
  } else if (word == "h") {
    sample.height = whole();
  } else if (word == "d") {
    sample.seed = number_of<uint64_t>(value, where, word.c_str());
  } else if (word == "s") {
    sample.steps = whole();
  } else if (word == "l") {
    sample.guidance_scale = number_of<double>(value, where, word.c_str());
  } else {
    TORCH_CHECK(false, where, ": expected --n, --w, --h, --d, --l or --s behind the prompt, got --",
                word);
  }
}

}  // namespace

std::vector<SamplePrompt> read_sample_prompts(const std::string& path, uint64_t seed) {
  TORCH_CHECK(std::filesystem::exists(path), "'", path,
              "': expected a file of prompts, got nothing of that name; hint: check ",
              "--sample_prompts");
  std::istringstream file(lightlora::read_file(path, kMostBytes));
  std::vector<SamplePrompt> samples;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    line = trimmed(line);
    if (line.empty() || line[0] == '#') continue;
    const auto where = fmt::format("'{}' line {}", path, number);
    SamplePrompt sample;
    sample.seed = seed + samples.size();
    auto mark = line.find(" --");
    sample.prompt = trimmed(line.substr(0, mark));
    while (mark != std::string::npos) {
      const auto begin = mark + 3;
      mark = line.find(" --", begin);
      read_setting(trimmed(line.substr(begin, mark - begin)), where, sample);
    }
    samples.push_back(std::move(sample));
  }
  TORCH_CHECK(!samples.empty(), "'", path, "': expected a prompt in a line, got none");
  return samples;
}

}  // namespace training
