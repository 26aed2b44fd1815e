// SPDX-License-Identifier: Apache-2.0
#include "generation/from_png.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

#include "generation/lora_tags.h"
#include "generation/parameters.h"
#include "support/cli/fmt.h"
#include "support/images/png.h"

namespace generation {

namespace {

constexpr const char* kKarras = " Karras";

using Settings = std::map<std::string, std::string>;  // by flag

bool has_ending(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The words of our flags for A1111's sampler, which may name the noise levels too.
void read_sampler(std::string sampler, Settings& settings) {
  if (has_ending(sampler, kKarras)) {
    sampler.resize(sampler.size() - std::string(kKarras).size());
    settings["use_karras_sigmas"] = "true";
  }
  settings["scheduler"] = sampler;  // an unknown one is left to the flag's own check
  for (const auto& [name, shown] : sampler_names()) {
    if (sampler == shown) settings["scheduler"] = name;
  }
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
    {"CFG start", "guidance_start"},
    {"CFG end", "guidance_end"},
    {"Timestep spacing", "timestep_spacing"},
    {"Prompt syntax", "prompt_syntax"},
};

// Flags that take the place of other settings of the picture beside their own.
const std::pair<const char*, std::vector<std::string>> kReplaced[] = {
    {"seed", {"initial_latents"}},
    {"seeds", {"seed", "initial_latents"}},
    {"num_images_per_prompt", {"initial_latents"}},
    {"image", {"initial_latents"}},
    {"height", {"initial_latents"}},
    {"width", {"initial_latents"}},
    {"initial_latents", {"image", "strength", "height", "width"}},
};

// The flag of a field about sizes; empty for another one.
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

// The number that a text begins with; 0 for none and for one that is too large to be meant.
int64_t whole_number(const std::string& text) {
  int64_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() ? value : 0;
}

// Adds the flags that a field stands for; false if it means nothing here.
bool read_field(const std::string& name, const std::string& value, Settings& settings) {
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

bool is_given(const cli::App& app, const std::string& flag) {
  return app.get_option("--" + flag)->count() > 0;
}

// Gives a flag a value as the command line would.
void set_flag(cli::App& app, const std::string& flag, const std::string& value,
              const std::string& source) {
  CLI::Option* option = app.get_option("--" + flag);
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

// Takes out what flags have taken the place of; names what was not a setting of the flag's own.
std::vector<std::string> give_way(const cli::App& app, const GenerationOptions& options,
                                  Settings& settings) {
  std::vector<std::string> replaced;
  const auto drop = [&](const std::string& setting, const std::string& flag) {
    if (settings.erase(setting) == 0 || is_given(app, setting)) return;
    replaced.push_back(fmt::format("{} (--{} is given)", setting, flag));
  };
  for (const auto& [flag, others] : kReplaced) {
    for (const auto& other : others) {
      if (is_given(app, flag)) drop(other, flag);
    }
  }
  if (is_given(app, "scheduler") && !sd::knows_karras_sigmas(options.sample.scheduler())) {
    drop("use_karras_sigmas", "scheduler");
  }
  return replaced;
}

// The files of the picture's tags come first in its list; A1111 names files by their tags alone.
void apply_loras(const Parameters& parameters, const cli::App& app, GenerationOptions& options,
                 Settings& settings) {
  const auto given = options.sample.prompt();
  const auto* listed = parameters.find("LoRA files");
  const auto files = listed ? files_in_list(*listed) : std::vector<std::string>();
  const bool plain = options.syntax() == sd::PromptSyntax::plain;
  const auto picture =
      plain ? TaggedPrompt{parameters.prompt, {}} : take_lora_tags(parameters.prompt);
  const bool own_prompt = is_given(app, "prompt");
  const bool own_tags = own_prompt && !plain && !take_lora_tags(given).tags.empty();
  if (is_given(app, "lora") || own_tags) {
    const auto end = picture.text.find_last_not_of(' ') + 1;
    if (!picture.tags.empty()) settings["prompt"] = picture.text.substr(0, end);
    return;
  }
  const bool known = files.size() >= picture.tags.size();
  std::vector<std::string> tag_files;
  for (std::size_t i = 0; i < picture.tags.size(); ++i) {
    const auto file = known ? sd::parse_lora(files[i]).path : std::string();
    const bool there = !file.empty() && std::filesystem::exists(file);
    tag_files.push_back(there ? file : find_lora(picture.tags[i].path, options.lora_dir));
  }
  for (std::size_t i = 0; i < picture.tags.size() && own_prompt; ++i) {
    options.picture_loras.push_back(picture.tags[i]);
    options.picture_loras.back().path = tag_files[i];
  }
  if (!own_prompt) options.tag_files = std::move(tag_files);
  for (std::size_t i = picture.tags.size(); i < files.size(); ++i) {
    options.picture_loras.push_back(sd::parse_lora(files[i]));
  }
}

}  // namespace

std::vector<std::string> apply_png(const std::string& path, cli::App& app,
                                   GenerationOptions& options) {
  const auto texts = images::read_png_text(path);
  const auto found = texts.find("parameters");
  TORCH_CHECK(found != texts.end(), "'", path,
              "': expected a PNG with a text 'parameters', got none; hint: sharing sites often ",
              "remove it");
  constexpr std::size_t kMostBytes = 1'000'000;
  TORCH_CHECK(found->second.size() <= kMostBytes, "'", path, "': expected settings of at most ",
              kMostBytes, " bytes, got ", found->second.size());
  const auto parameters = parse_parameters(found->second, path);
  Settings settings = {{"prompt", parameters.prompt},
                       {"negative_prompt", parameters.negative_prompt}};
  std::vector<std::string> unused;
  for (const auto& [name, value] : parameters.fields) {
    if (!read_field(name, value, settings)) unused.push_back(name);
  }
  for (const auto& line : parameters.further) unused.push_back(line.substr(0, line.find(':')));
  const auto replaced = give_way(app, options, settings);
  unused.insert(unused.end(), replaced.begin(), replaced.end());
  if (settings.count("initial_latents")) {
    settings.erase("width");  // they set the size
    settings.erase("height");
  }
  const bool own_seeds =
      is_given(app, "seed") || is_given(app, "seeds") || is_given(app, "num_images_per_prompt");
  if (const auto* index = parameters.find("Batch index"); index && !own_seeds) {
    options.sample.batch_position(whole_number(*index));
  } else {
    settings.erase("num_images_per_prompt");
  }
  if (const auto syntax = settings.find("prompt_syntax");
      syntax != settings.end() && !is_given(app, "prompt_syntax")) {
    set_flag(app, syntax->first, syntax->second, path);
  }
  apply_loras(parameters, app, options, settings);
  for (const auto& [flag, value] : settings) {
    if (!value.empty() && !is_given(app, flag)) set_flag(app, flag, value, path);
  }
  if (const auto* words = parameters.find("Learned embeds");
      words && !is_given(app, "learned_embeds")) {
    options.learned_embeds = files_in_list(*words);
  }
  return unused;
}

}  // namespace generation
