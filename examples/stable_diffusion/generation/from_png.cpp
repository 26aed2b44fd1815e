// SPDX-License-Identifier: Apache-2.0
#include "generation/from_png.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "generation/axes.h"
#include "generation/lora_tags.h"
#include "generation/parameters.h"
#include "support/cli/fmt.h"
#include "support/files/limits.h"
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

// Flags that take the place of other settings of the picture beside their own. The number of
// pictures is that of the batch which the picture is one of.
const std::pair<const char*, std::vector<std::string>> kReplaced[] = {
    {"seed", {"initial_latents", "num_images_per_prompt"}},
    {"seeds", {"seed", "initial_latents", "num_images_per_prompt"}},
    {"num_images_per_prompt", {"initial_latents"}},
    {"image", {"initial_latents"}},
    {"height", {"initial_latents"}},
    {"width", {"initial_latents"}},
    {"initial_latents", {"image", "strength", "height", "width", "num_images_per_prompt"}},
};

// The flag that an axis of --xy gives values in the place of; empty for the weight of LoRA files.
std::string axis_flag(const std::string& axis) {
  if (axis == "steps") return "num_inference_steps";
  if (axis == "guidance") return "guidance_scale";
  return axis == "lora_weight" ? "" : axis;
}

// What a setting of the picture is called where it is not a flag's name.
std::string shown(const std::string& setting) {
  return setting == "num_images_per_prompt" ? "Batch index" : setting;
}

// Fields about sizes, and their flags.
const std::map<std::string, std::string>& size_flags() {
  static const std::map<std::string, std::string> flags{
      {"Original size", "original_size"},
      {"Crop", "crops_coords_top_left"},
      {"Target size", "target_size"},
      {"Negative original size", "negative_original_size"},
      {"Negative crop", "negative_crops_coords_top_left"},
      {"Negative target size", "negative_target_size"}};
  return flags;
}

// The flag of a field about sizes; empty for another one.
std::string size_flag(const std::string& field) {
  const auto found = size_flags().find(field);
  return found == size_flags().end() ? "" : found->second;
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

// What was said beside the picture, by flags and by the axes of --xy.
class Said {
 public:
  Said(const cli::App& app, const GenerationOptions& options)
      : app_(app), options_(options), axes_(parse_axes(options.xy)) {}

  // "--scheduler", "--xy", or an empty text if nothing was said.
  std::string by(const std::string& flag) const {
    for (const auto& axis : axes_) {
      if (axis_flag(axis.name) == flag) return "--xy";
    }
    return is_given(app_, flag) ? "--" + flag : "";
  }

  // The samplers that will be used; `own` is the picture's.
  std::vector<std::string> schedulers(const std::string& own) const {
    for (const auto& axis : axes_) {
      if (axis.name == "scheduler") return axis.values;
    }
    return {is_given(app_, "scheduler") ? options_.sample.scheduler() : own};
  }

 private:
  const cli::App& app_;
  const GenerationOptions& options_;
  std::vector<Axis> axes_;
};

// Takes out what flags and axes have taken the place of; names what was not a setting of their own.
std::vector<std::string> give_way(const cli::App& app, const GenerationOptions& options,
                                  Settings& settings) {
  const Said said(app, options);
  std::vector<std::string> replaced;
  const auto drop = [&](const std::string& setting, const std::string& reason) {
    if (settings.erase(setting) == 0 || is_given(app, setting)) return;
    replaced.push_back(fmt::format("{} ({})", shown(setting), reason));
  };
  for (const auto& [flag, others] : kReplaced) {
    const auto by = said.by(flag);
    for (const auto& other : others) {
      if (!by.empty()) drop(other, by + " is given");
    }
  }
  for (const auto& name : said.schedulers(settings["scheduler"])) {
    if (sd::knows_karras_sigmas(name)) continue;
    const auto by = said.by("scheduler");
    drop("use_karras_sigmas", !by.empty()    ? by + " is given"
                              : name.empty() ? "no sampler is named"
                                             : name + " has none");
  }
  // What ends before it begins.
  const auto share = [&](const char* setting, double otherwise) {
    const auto found = settings.find(setting);
    return found == settings.end() ? otherwise : std::strtod(found->second.c_str(), nullptr);
  };
  if (is_given(app, "guidance_start") &&
      share("guidance_end", 1) < options.sample.guidance_start()) {
    drop("guidance_end", "--guidance_start is given");
  }
  if (is_given(app, "guidance_end") && share("guidance_start", 0) > options.sample.guidance_end()) {
    drop("guidance_start", "--guidance_end is given");
  }
  return replaced;
}

// Whether all that there is to tell SDXL about sizes is from the picture, which may be drawn with a
// model that is told nothing.
bool only_sizes_of_picture(const cli::App& app, const Settings& settings) {
  bool any = false;
  for (const auto& item : size_flags()) {
    if (is_given(app, item.second)) return false;
    any = any || settings.count(item.second) > 0;
  }
  return any;
}

// The files of the picture's tags come first in its list; A1111 names files by their tags alone.
void apply_loras(const Parameters& parameters, const cli::App& app, GenerationOptions& options,
                 Settings& settings) {
  const auto given = options.sample.prompt();
  const auto* listed = parameters.find("LoRA files");
  const auto files = listed ? files_in_list(*listed) : std::vector<std::string>();
  const bool plain = options.syntax() == sd::PromptSyntax::plain;
  const auto picture =
      plain ? TaggedPrompt{parameters.prompt, {}, {}} : take_lora_tags(parameters.prompt);
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
    const bool there = !file.empty() && sd::limits::exists(file);
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
  const bool of_batch =
      settings.count("num_images_per_prompt") > 0 && !is_given(app, "num_images_per_prompt");
  if (of_batch) options.sample.batch_position(whole_number(*parameters.find("Batch index")));
  options.picture_sizes = only_sizes_of_picture(app, settings);
  if (const auto syntax = settings.find("prompt_syntax");
      syntax != settings.end() && !is_given(app, "prompt_syntax")) {
    set_flag(app, syntax->first, syntax->second, path);
  }
  apply_loras(parameters, app, options, settings);
  const Said said(app, options);
  for (const auto& [flag, value] : settings) {
    if (value.empty() || !said.by(flag).empty()) continue;
    set_flag(app, flag, value, path);
    options.picture_flags.push_back(flag);
  }
  if (const auto* words = parameters.find("Learned embeds");
      words && !is_given(app, "learned_embeds")) {
    options.learned_embeds = files_in_list(*words);
  }
  return unused;
}

void naming_picture(const GenerationOptions& options, const std::function<void()>& work) {
  try {
    work();
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    const auto begin = message.find_first_not_of('\'');
    for (const auto& flag : options.picture_flags) {
      const std::string name = "--" + flag;
      const bool is_named = begin != std::string::npos &&
                            message.compare(begin, name.size(), name) == 0 &&
                            message.find_first_of(": '", begin) == begin + name.size();
      TORCH_CHECK(!is_named, "'", options.from_png, "': ", message, "; hint: give ", name,
                  " beside --from_png");
    }
    throw;
  }
}

}  // namespace generation
