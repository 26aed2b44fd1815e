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
#include "support/images/png.h"

namespace generation {

namespace {

// A1111's names of the samplers.
const std::pair<const char*, const char*> kSamplers[] = {
    {"ddim", "DDIM"},         {"ddpm", "DDPM"},   {"pndm", "PLMS"},
    {"euler", "Euler"},       {"lcm", "LCM"},     {"euler_ancestral", "Euler a"},
    {"dpmpp_2m", "DPM++ 2M"}, {"unipc", "UniPC"},
};
constexpr const char* kKarras = " Karras";
constexpr const char* kNegative = "Negative prompt:";
constexpr const char* kFileSeparator = "; ";

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string quoted(const std::string& value) {
  const bool plain = value.find_first_of(",:\n\"") == std::string::npos;
  return plain ? value : nlohmann::json(value).dump();
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

std::string sampler_name(const GenerationOptions& options) {
  for (const auto& [name, shown] : kSamplers) {
    if (options.sample.scheduler() == name ||
        options.sample.scheduler() == fmt::format("{}_karras", name))
      return shown;
  }
  return options.sample.scheduler();
}

bool uses_karras(const GenerationOptions& options) {
  return options.sample.use_karras_sigmas() || ends_with(options.sample.scheduler(), "_karras");
}

// The words of our flags for A1111's sampler, which may name the noise levels too.
void read_sampler(std::string sampler, std::map<std::string, std::string>& settings) {
  if (ends_with(sampler, kKarras)) {
    sampler.resize(sampler.size() - std::string(kKarras).size());
    settings["use_karras_sigmas"] = "true";
  }
  settings["scheduler"] = sampler;  // an unknown one is left to the flag's own check
  for (const auto& [name, shown] : kSamplers) {
    if (sampler == shown) settings["scheduler"] = name;
  }
}

// The number that a text begins with; 0 for none and for one that is too large to be meant.
int64_t whole_number(const std::string& text) {
  int64_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() ? value : 0;
}

// Names of fields and of the flags that take their values as they are.
const std::pair<const char*, const char*> kPlainFields[] = {
    {"Steps", "num_inference_steps"},
    {"CFG scale", "guidance_scale"},
    {"Seed", "seed"},
    {"Denoising strength", "strength"},
    {"Init image", "image"},
    {"Initial latents", "initial_latents"},
    {"Eta", "eta"},
    {"CFG Rescale", "guidance_rescale"},
    {"Timestep spacing", "timestep_spacing"},
    {"Prompt syntax", "prompt_syntax"},
};

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

// The flag of such a field; empty for another one.
std::string size_flag(const std::string& field) {
  static const std::map<std::string, std::string> flags{
      {"Original size", "original_size"},
      {"Crop", "crops_coords_top_left"},
      {"Target size", "target_size"},
      {"Negative original size", "negative_original_size"},
      {"Negative crop", "negative_crops_coords_top_left"},
      {"Negative target size", "negative_target_size"}};
  const auto found = flags.find(field);
  return found == flags.end() ? "" : found->second;
}

// Adds the flags that a field stands for; false if it means nothing here.
bool read_field(const std::string& name, const std::string& value,
                std::map<std::string, std::string>& settings) {
  for (const auto& [field, flag] : kPlainFields) {
    if (name != field) continue;
    settings[flag] = value;
    return true;
  }
  const auto split = value.find_first_of("x/");
  if (name == "Size" && split != std::string::npos) {
    settings["width"] = value.substr(0, split);
    settings["height"] = value.substr(split + 1);
  } else if (const auto flag = size_flag(name); !flag.empty() && split != std::string::npos) {
    settings[flag] = value.substr(0, split) + " " + value.substr(split + 1);
  } else if (name == "Sampler") {
    read_sampler(value, settings);
  } else if (name == "Schedule type") {
    if (value == "Karras") settings["use_karras_sigmas"] = "true";
    return value == "Karras" || value == "Automatic";
  } else if (name == "Clip skip") {
    settings["clip_skip"] = fmt::to_string(std::max<int64_t>(whole_number(value) - 1, 0));
  } else if (name == "Batch index" && split != std::string::npos) {
    settings["num_images_per_prompt"] = value.substr(split + 1);
  } else {
    return name == "Version" || name == "Model" || name == "LoRA files" || name == "Learned embeds";
  }
  return true;
}

// The files of such a text; none if there is no text.
std::vector<std::string> listed(const std::string* text) {
  std::vector<std::string> files;
  for (std::size_t at = 0; text != nullptr && at <= text->size();) {
    const auto end = std::min(text->find(kFileSeparator, at), text->size());
    files.push_back(text->substr(at, end - at));
    at = end + std::string(kFileSeparator).size();
  }
  return files;
}

// Gives a flag a value as the command line would, unless it has one.
void set_flag(cli::App& app, const std::string& flag, const std::string& value,
              const std::string& source) {
  CLI::Option* option = app.get_option("--" + flag);
  if (option->count() > 0 || value.empty()) return;
  try {
    const auto space = value.find(' ');
    if (option->get_expected_max() == 2 && space != std::string::npos) {
      option->add_result(value.substr(0, space));
      option->add_result(value.substr(space + 1));
    } else {
      option->add_result(value);
    }
    option->run_callback();
  } catch (const CLI::ParseError& error) {
    TORCH_CHECK_VALUE(false, "'", source, "': ", error.what(), "; hint: give --", flag,
                      " beside --from_png");
  }
}

}  // namespace

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
  if (!lines.empty()) result.fields = parse_fields(lines.back());
  TORCH_CHECK(result.find("Steps") && result.find("Seed"), "'", source,
              "': expected settings such as 'Steps: 20, ..., Seed: 1' in the last line, got ",
              lines.empty() ? "an empty text" : "'" + lines.back() + "'");
  lines.pop_back();
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
  Parameters result{options.sample.prompt(), options.sample.negative_prompt().value_or(""), {}};
  std::vector<std::string> files;
  const bool tags = options.syntax() == sd::PromptSyntax::a1111;
  const auto present = tags ? take_lora_tags(options.sample.prompt()).tags.size() : 0;
  for (std::size_t i = 0; i < loras.size(); ++i) {  // those of the prompt come first
    files.push_back(fmt::format("{}:{}", loras[i].path, loras[i].weight));
    if (i < present || !tags) continue;
    result.prompt += fmt::format(" <lora:{}:{}>", lora_stem(loras[i].path), loras[i].weight);
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
  for (const auto& [field, pair] : size_fields(options.sample)) add(field, pair);
  add("Timestep spacing", options.sample.timestep_spacing());
  add("Prompt syntax", tags ? "" : "plain");
  add("Initial latents", options.initial_latents);
  if (picture.count > 1) {
    add("Batch index", fmt::format("{}/{}", picture.index, picture.count));
  }
  add("LoRA files", fmt::format("{}", fmt::join(files, kFileSeparator)));
  add("Learned embeds", fmt::format("{}", fmt::join(options.learned_embeds, kFileSeparator)));
  add("Version", fmt::format("lightlora {}", LIGHTLORA_VERSION));
  return result;
}

PngSettings apply_png(const std::string& path, cli::App& app, GenerationOptions& options) {
  const auto texts = images::read_png_text(path);
  const auto found = texts.find("parameters");
  TORCH_CHECK(found != texts.end(), "'", path,
              "': expected a PNG with a text 'parameters', got none; hint: sharing sites often ",
              "remove it");
  constexpr std::size_t kMostBytes = 1'000'000;
  TORCH_CHECK(found->second.size() <= kMostBytes, "'", path, "': expected settings of at most ",
              kMostBytes, " bytes, got ", found->second.size());
  const auto parameters = parse_parameters(found->second, path);
  PngSettings result;
  std::map<std::string, std::string> settings = {{"prompt", parameters.prompt},
                                                 {"negative_prompt", parameters.negative_prompt}};
  for (const auto& [name, value] : parameters.fields) {
    if (!read_field(name, value, settings)) result.ignored.push_back(name);
  }
  if (settings.count("initial_latents")) {
    settings.erase("width");  // they set the size
    settings.erase("height");
  }
  const bool own_seeds = app.get_option("--seed")->count() + app.get_option("--seeds")->count() +
                             app.get_option("--num_images_per_prompt")->count() >
                         0;
  if (const auto* index = parameters.find("Batch index"); index && !own_seeds) {
    options.sample.batch_position(whole_number(*index));
  } else {
    settings.erase("num_images_per_prompt");
  }
  for (const auto& [flag, value] : settings) set_flag(app, flag, value, path);
  result.lora_files = listed(parameters.find("LoRA files"));
  if (options.learned_embeds.empty()) {
    options.learned_embeds = listed(parameters.find("Learned embeds"));
  }
  return result;
}

}  // namespace generation
