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

std::string quoted(const std::string& value) {
  const bool plain = value.find_first_of(",:\n\"") == std::string::npos;
  return plain ? value
               : nlohmann::json(value).dump(-1, ' ', /*ensure_ascii=*/false,
                                            nlohmann::json::error_handler_t::replace);
}

std::string unquoted(const std::string& value) {
  if (value.size() < 2 || value.front() != '"' || value.back() != '"') return value;
  // A quoted text and nothing else, so no depth of brackets either.
  const auto parsed = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
  return parsed.is_string() ? parsed.get<std::string>() : value;
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
    return file.find(';') != std::string::npos || file.front() == '[';
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
    if (!line.empty() && line.back() == '\r') line.pop_back();
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
  std::string* part = &result.prompt;
  for (auto line : lines) {
    const bool turns = line.rfind(kNegative, 0) == 0;
    if (turns) {
      part = &result.negative_prompt;
      line.erase(0,
                 std::min(line.find_first_not_of(' ', std::string(kNegative).size()), line.size()));
    }
    *part += (part->empty() || turns ? "" : "\n") + line;
  }
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
  if (!options.image.empty()) add("Denoising strength", fmt::to_string(options.sample.strength()));
  add("Init image", options.image);
  if (options.sample.clip_skip() > 0)
    add("Clip skip", fmt::to_string(options.sample.clip_skip() + 1));
  if (options.sample.eta() > 0) add("Eta", fmt::to_string(options.sample.eta()));
  if (options.sample.guidance_rescale() > 0) {
    add("CFG Rescale", fmt::to_string(options.sample.guidance_rescale()));
  }
  if (options.sample.guidance_start() > 0) {
    add("CFG start", fmt::to_string(options.sample.guidance_start()));
  }
  if (options.sample.guidance_end() < 1) {
    add("CFG end", fmt::to_string(options.sample.guidance_end()));
  }
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
