// SPDX-License-Identifier: Apache-2.0
#include "generation/parameters.h"

#include <c10/util/Exception.h>
#include <lightlora/config.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "generation/lora_tags.h"
#include "support/cli/fmt.h"

namespace generation {

namespace {

constexpr const char* kNegative = "Negative prompt:";
constexpr const char* kFileSeparator = "; ";

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20; }

// A value as A1111 would write it: in quotes, as JSON has them, where it could be taken for more than
// one field, or would lose its ends. Bytes that are no UTF-8 stay as they are.
std::string quoted(const std::string& value) {
  const auto is_special = [](char c) { return c == ',' || c == ':' || c == '"' || is_control(c); };
  const bool spaced = !value.empty() && (value.front() == ' ' || value.back() == ' ');
  if (!spaced && std::none_of(value.begin(), value.end(), is_special)) return value;
  std::string result = "\"";
  for (const char c : value) {
    if (c == '\n') {
      result += "\\n";
    } else if (is_control(c)) {
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      if (c == '"' || c == '\\') result += '\\';
      result += c;
    }
  }
  return result + '"';
}

// The opposite, and what is in no quotes, or in quotes that JSON would not have, as it stands.
std::string unquoted(const std::string& value) {
  if (value.size() < 2 || value.front() != '"' || value.back() != '"') return value;
  std::string result;
  const std::size_t last = value.size() - 1;
  for (std::size_t at = 1; at < last;) {
    if (value[at] == '"' || is_control(value[at])) return value;
    if (value[at] != '\\') {
      result += value[at++];
      continue;
    }
    std::size_t end = at;  // of escapes that may belong together
    while (end + 1 < last && value[end] == '\\') end += value[end + 1] == 'u' ? 6 : 2;
    if (end == at || end > last) return value;
    const auto escapes = nlohmann::json::parse(fmt::format("\"{}\"", value.substr(at, end - at)),
                                               nullptr, /*allow_exceptions=*/false);
    if (!escapes.is_string()) return value;
    result += escapes.get<std::string>();
    at = end;
  }
  return result;
}

// The fields of "Steps: 20, Sampler: Euler a, ...": a name, a colon, and a value up to a comma or
// in quotes. Empty if the line is anything else.
std::vector<std::pair<std::string, std::string>> parse_fields(const std::string& line) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (std::size_t at = 0; at < line.size();) {
    const auto colon = line.find(':', at);
    if (colon == std::string::npos) return {};
    const auto begin = line.find_first_not_of(' ', at);
    const std::string name = line.substr(begin, colon - begin);
    auto value = line.find_first_not_of(' ', colon + 1);
    if (value == std::string::npos) value = line.size();
    auto end = value;
    if (value < line.size() && line[value] == '"') {
      for (++end; end < line.size() && line[end] != '"'; ++end) {
        if (line[end] == '\\') ++end;
      }
      end = std::min(end + 1, line.size());
    }
    end = std::min(line.find(',', end), line.size());
    if (name.empty() || name.find(',') != std::string::npos) return {};
    fields.emplace_back(name, unquoted(line.substr(value, end - value)));
    at = end + 1;
  }
  return fields;
}

// What SDXL was told about sizes, as "1024x768": fields and values, the latter empty if not given.
std::vector<std::pair<std::string, std::string>> size_fields(const sd::SampleOptions& sample) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (const auto& [before, sizes] :
       {std::pair("", &sample.size()), std::pair("Negative ", &sample.negative_size())}) {
    for (const auto& [name, pair] : {std::pair("original size", &sizes->original_size),
                                     std::pair("crop", &sizes->crops_coords_top_left),
                                     std::pair("target size", &sizes->target_size)}) {
      std::string field = std::string(before) + name;
      field[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(field[0])));
      fields.emplace_back(field, pair->empty() ? "" : fmt::format("{}x{}", (*pair)[0], (*pair)[1]));
    }
  }
  return fields;
}

// What of the sampling is not as usual; values are empty where it is.
std::vector<std::pair<std::string, std::string>> sampling_fields(const sd::SampleOptions& sample) {
  const auto unless = [](bool usual, auto number) {
    return usual ? std::string() : fmt::to_string(number);
  };
  return {{"Clip skip", unless(sample.clip_skip() <= 0, sample.clip_skip() + 1)},
          {"Eta", unless(sample.eta() <= 0, sample.eta())},
          {"CFG Rescale", unless(sample.guidance_rescale() <= 0, sample.guidance_rescale())},
          {"CFG start", unless(sample.guidance_start() <= 0, sample.guidance_start())},
          {"CFG end", unless(sample.guidance_end() >= 1, sample.guidance_end())}};
}

std::string sampler_name(const GenerationOptions& options) {
  for (const auto& [name, shown] : sampler_names()) {
    if (options.sample.scheduler() == name ||
        options.sample.scheduler() == fmt::format("{}_karras", name))
      return shown;
  }
  return options.sample.scheduler();
}

bool uses_karras(const GenerationOptions& options) {
  return options.sample.use_karras_sigmas() || ends_with(options.sample.scheduler(), "_karras");
}

}  // namespace

const std::vector<std::pair<std::string, std::string>>& sampler_names() {
  static const std::vector<std::pair<std::string, std::string>> names{
      {"ddim", "DDIM"},         {"ddpm", "DDPM"},   {"pndm", "PLMS"},
      {"euler", "Euler"},       {"lcm", "LCM"},     {"euler_ancestral", "Euler a"},
      {"dpmpp_2m", "DPM++ 2M"}, {"unipc", "UniPC"},
  };
  return names;
}

std::string file_list(const std::vector<std::string>& files) {
  const bool plain = std::none_of(files.begin(), files.end(), [](const std::string& file) {
    return file.find(';') != std::string::npos || file.rfind('[', 0) == 0;
  });
  if (plain) return fmt::format("{}", fmt::join(files, kFileSeparator));
  return nlohmann::json(files).dump(-1, ' ', /*ensure_ascii=*/false,
                                    nlohmann::json::error_handler_t::replace);
}

std::vector<std::string> files_in_list(const std::string& text) {
  const auto list = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> files;
  if (list.is_array()) {
    for (const auto& file : list) {
      if (file.is_string()) files.push_back(file.get<std::string>());
    }
    return files;
  }
  for (std::size_t at = 0; at <= text.size();) {
    const auto end = std::min(text.find(kFileSeparator, at), text.size());
    files.push_back(text.substr(at, end - at));
    at = end + std::string(kFileSeparator).size();
  }
  return files;
}

std::string Parameters::text() const {
  std::string result = prompt + "\n";
  if (!negative_prompt.empty()) result += fmt::format("{} {}\n", kNegative, negative_prompt);
  for (std::size_t i = 0; i < fields.size(); ++i) {
    result += fmt::format("{}{}: {}", i > 0 ? ", " : "", fields[i].first, quoted(fields[i].second));
  }
  return result;
}

const std::string* Parameters::find(const std::string& field) const {
  for (const auto& [name, value] : fields) {
    if (name == field) return &value;
  }
  return nullptr;
}

Parameters parse_parameters(const std::string& text, const std::string& source) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    while (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  Parameters result;
  const auto is_settings = [&](const std::string& line) {
    result.fields = parse_fields(line);
    return result.find("Steps") && result.find("Seed");
  };
  // Extensions of A1111 write further lines behind the settings.
  auto settings = lines.rbegin();
  while (settings != lines.rend() && !is_settings(*settings)) ++settings;
  TORCH_CHECK(settings != lines.rend(), "'", source,
              "': expected settings such as 'Steps: 20, ..., Seed: 1' in the last line, got ",
              lines.empty() ? "an empty text" : "'" + lines.back() + "'");
  result.further.assign(settings.base(), lines.end());
  lines.erase(settings.base() - 1, lines.end());
  // The first line of that name turns to the negative prompt; in it, such a line is text.
  const auto is_negative = [](const std::string& line) { return line.rfind(kNegative, 0) == 0; };
  const auto turn = std::find_if(lines.begin(), lines.end(), is_negative);
  result.prompt = fmt::format("{}", fmt::join(lines.begin(), turn, "\n"));
  if (turn == lines.end()) return result;
  turn->erase(0, std::string(kNegative).size());
  if (turn->rfind(' ', 0) == 0) turn->erase(0, 1);
  result.negative_prompt = fmt::format("{}", fmt::join(turn, lines.end(), "\n"));
  return result;
}

Parameters describe(const GenerationOptions& options, const std::vector<sd::LoRAChoice>& loras,
                    const DrawnPicture& picture) {
  Parameters result{options.sample.prompt(), options.sample.negative_prompt().value_or(""), {}, {}};
  std::vector<std::string> files;
  const bool tags = options.syntax() == sd::PromptSyntax::a1111;
  const auto present = tags ? take_lora_tags(options.sample.prompt()).tags.size() : 0;
  for (std::size_t i = 0; i < loras.size(); ++i) {  // those of the prompt come first
    files.push_back(fmt::format("{}:{}", loras[i].path, loras[i].weight));
    if (i < present || !tags) continue;
    result.prompt += " " + lora_tag(loras[i]);
  }
  const auto add = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) result.fields.emplace_back(name, value);
  };
  add("Steps", fmt::to_string(options.sample.num_inference_steps()));
  add("Sampler", sampler_name(options));
  add("Schedule type", uses_karras(options) ? "Karras" : "");
  add("CFG scale", fmt::to_string(options.sample.guidance_scale()));
  add("Seed", fmt::to_string(picture.seed));
  add("Size", fmt::format("{}x{}", picture.width, picture.height));
  const auto model = std::filesystem::path(options.model.path).lexically_normal();
  add("Model", (model.has_filename() ? model : model.parent_path()).stem().string());
  // As A1111 says it; nothing here reads it back, since a preview is not what to draw again.
  add("VAE Decoder", options.model.load.taesd().empty() ? "" : "TAESD");
  // Likewise: drawn again, the picture is that of the full weights.
  add("UNet", std::filesystem::path(options.model.load.unet()).filename().string());
  add("Base precision", sd::to_string(options.model.load.base_precision()));
  if (!options.image.empty()) add("Denoising strength", fmt::to_string(options.sample.strength()));
  add("Init image", options.image);
  for (const auto& [field, number] : sampling_fields(options.sample)) add(field, number);
  for (const auto& [field, pair] : size_fields(options.sample)) add(field, pair);
  add("Timestep spacing", options.sample.timestep_spacing());
  add("Prompt syntax", tags ? "" : "plain");
  add("Initial latents", options.initial_latents);
  if (picture.count > 1) {
    add("Batch index", fmt::format("{}/{}", picture.index, picture.count));
  }
  add("LoRA files", file_list(files));
  add("Learned embeds", file_list(options.learned_embeds));
  add("Version", fmt::format("lightlora {}", LIGHTLORA_VERSION));
  return result;
}

}  // namespace generation
