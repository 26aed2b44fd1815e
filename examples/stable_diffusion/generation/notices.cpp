// SPDX-License-Identifier: Apache-2.0
// What is worth knowing before the first picture: Generator::notices and its parts.
#include <algorithm>
#include <cstdlib>

#include "generation/generator.h"
#include "generation/lora_tags.h"
#include "pipeline/embeddings.h"
#include "support/cli/fmt.h"
#include "support/images/load.h"

namespace generation {

namespace {

TaggedPrompt tagged(const GenerationOptions& options) {
  if (options.syntax() == sd::PromptSyntax::plain) return {options.sample.prompt(), {}, {}};
  return take_lora_tags(options.sample.prompt());
}

}  // namespace

// Flags that play no part beside the others.
void Generator::add_unused(std::vector<std::string>& lines) const {
  const auto& sample = options_.sample;
  const bool limited = sample.guidance_start() > 0 || sample.guidance_end() < 1;
  const bool batched = sample.num_images_per_prompt() > 1 && !sample.batch_position();
  const auto latents = options_.initial_latents.empty() ? 0 : count();
  const std::string no_guidance = "with a --guidance_scale of 1 or less";
  struct Row {
    bool unused;
    std::string flag, reason;
  };
  const Row table[] = {
      {sample.eta() > 0 && !uses_scheduler("ddim"), "--eta", "without --scheduler ddim"},
      {!image_.defined() && sample.strength() != sd::SampleOptions().strength(), "--strength",
       "without --image"},
      {!guides() && !sample.negative_prompt().value_or("").empty(), "--negative_prompt",
       no_guidance},
      {!guides() && limited, "--guidance_start or --guidance_end", no_guidance},
      {!guides() && sample.guidance_rescale() > 0, "--guidance_rescale", no_guidance},
      {!guides() && !sample.negative_size().empty(), "--negative_original_size and its like",
       no_guidance},
      {uses_scheduler("lcm") && !sample.timestep_spacing().empty(), "--timestep_spacing",
       "with --scheduler lcm"},
      {latents > 0 && batched && sample.num_images_per_prompt() != latents,
       "--num_images_per_prompt",
       fmt::format("with --initial_latents, which are those of {} picture{}", latents,
                   latents == 1 ? "" : "s")},
      {options_.split_rank && choices_.empty(), "--split_rank", "without a LoRA file"},
      {options_.vae_tiling && !pipeline_.options().load_vae(), "--vae_tiling", "with --taesd"},
      {!options_.lora_dir.empty() && tagged(options_).tags.empty(), "--lora_dir",
       "without a <lora:name> in the prompt"},
      {sample.batch_size() > 1 && group_.size() > 1 && options_.xy.empty(), "--batch_size",
       "with several processes, of which each draws one picture at once"},
      {sample.batch_size() > 1 && !options_.xy.empty(), "--batch_size", "with --xy"},
      {!options_.xy.empty() && !options_.save_latents.empty(), "--save_latents", "with --xy"},
      {!options_.xy.empty() && options_.grid, "--grid", "with --xy"},
  };
  for (const auto& row : table) {
    if (row.unused) lines.push_back(fmt::format("{} has no effect {}", row.flag, row.reason));
  }
}

// Whether any picture is drawn with this sampler.
bool Generator::uses_scheduler(const std::string& name) const {
  for (const auto& axis : parse_axes(options_.xy)) {
    if (axis.name != "scheduler") continue;
    return std::find(axis.values.begin(), axis.values.end(), name) != axis.values.end();
  }
  return options_.sample.scheduler() == name;
}

// Whether any picture is drawn with guidance.
bool Generator::guides() const {
  for (const auto& axis : parse_axes(options_.xy)) {
    if (axis.name != "guidance") continue;
    return std::any_of(axis.values.begin(), axis.values.end(), [](const std::string& value) {
      return std::strtod(value.c_str(), nullptr) > 1;
    });
  }
  return options_.sample.guidance_scale() > 1;
}

// What is unusual about the picture to start from.
void Generator::add_about_image(std::vector<std::string>& lines) const {
  if (!image_.defined()) return;
  if (images::has_transparency(options_.image)) {
    lines.push_back(fmt::format(
        "'{}': its transparency is dropped: what shows through is drawn as it is stored",
        options_.image));
  }
  if (uses_scheduler("pndm")) {
    lines.push_back("pndm leaves noise in image to image, as in diffusers; hint: --scheduler ddim");
  }
  const auto own = pipeline_.default_size();
  const bool sized = options_.sample.width() || options_.sample.height();
  if (sized || image_.size(2) * image_.size(3) <= 4 * own[0] * own[1]) return;
  lines.push_back(
      fmt::format("the picture has {}x{} pixels, far more than the model's own {}x{}; "
                  "hint: --width or --height makes it smaller",
                  image_.size(3), image_.size(2), own[1], own[0]));
}

std::vector<std::string> Generator::notices() const {
  std::vector<std::string> lines;
  const auto& sample = options_.sample;
  for (const auto& [name, text] :
       {std::pair("prompt", without_tags(options_)),
        std::pair("negative prompt", sample.negative_prompt().value_or(""))}) {
    const auto count = pipeline_.prompt_chunks(text, options_.syntax()).front().size();
    if (count < 2) continue;
    lines.push_back(
        fmt::format("the {} is read in {} chunks of the text encoder's length", name, count));
  }
  if (options_.picture_sizes && !pipeline_.is_sdxl()) {
    lines.push_back(
        fmt::format("'{}': not used: what SDXL was told about sizes (the model is not "
                    "SDXL)",
                    options_.from_png));
  }
  add_unused(lines);
  for (const auto& tag : tagged(options_).unused) {
    lines.push_back(fmt::format("'{}' is not used: there are no hypernetworks here", tag));
  }
  for (const auto& file : options_.learned_embeds) {
    for (const auto& word : sd::read_embeddings(file)) {
      const bool used = sample.prompt().find(word.token) != std::string::npos ||
                        sample.negative_prompt().value_or("").find(word.token) != std::string::npos;
      if (!used) lines.push_back(fmt::format("'{}': no prompt uses {}", file, word.token));
    }
  }
  for (const auto& word : bundled_) {
    if (!word.problem.empty()) {
      lines.push_back(fmt::format("'{}': a word in it is not used: {}", word.file, word.problem));
      continue;
    }
    const bool used = sample.prompt().find(word.token) != std::string::npos ||
                      sample.negative_prompt().value_or("").find(word.token) != std::string::npos;
    lines.push_back(fmt::format("'{}' holds the word {}, which {} uses", word.file, word.token,
                                used ? "the prompt" : "no prompt"));
  }
  add_about_image(lines);
  return lines;
}

}  // namespace generation
