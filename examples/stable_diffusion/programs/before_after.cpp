// SPDX-License-Identifier: Apache-2.0
// Draws the same prompts with and without a LoRA, from the same noise, side by side.
// Writes before.png, after.png and contact_sheet.png into the output folder; with --emoji it
// ends with two measures: is the subject recognised, and does the prompt still decide the background.
#include <torch/torch.h>

#include <filesystem>
#include <iostream>

#include "support/cli/app.h"
#include "support/cli/format.h"
#include "pipeline/model_flags.h"
#include "support/cli/progress.h"
#include "support/cli/run.h"
#include "support/images/load.h"
#include "support/images/measures.h"
#include "support/images/png.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"
#include "support/images/tensor.h"
#include "pipeline/device.h"
#include "pipeline/lora.h"
#include "pipeline/pipeline.h"

namespace {

struct Flags : sd::ModelFlags {
  std::string lora, subject_pictures, output_dir = "before_after", emoji_vectors, emoji;
  std::vector<std::string> prompts;
  std::string device = "auto", scheduler = "ddim";
  int64_t steps = 30, seeds = 2, seed = 0;
  double guidance_scale = 5;
};

void add_flags(cli::App& app, Flags& f) {
  app.group("Required");
  sd::add_model_flag(app, f);
  app.add_option("--lora", f.lora, "LoRA file as FILE or FILE:WEIGHT")->required();
  app.add_option("--prompt", f.prompts, "What to draw; may be repeated")->required();
  app.group("Files");
  sd::add_single_file_flags(app, f);
  app.group("Pictures");
  app.add_option("--output_dir", f.output_dir, "Folder for the pictures");
  app.add_option("--subject_pictures", f.subject_pictures,
                 "Folder with the subject's pictures, for the first row of the contact sheet");
  app.add_option("--seeds", f.seeds, "Pictures per prompt")->check(cli::at_least(1));
  app.add_option("--seed", f.seed, "First seed")->check(cli::at_least(0));
  app.add_option("--num_inference_steps", f.steps, "Denoising steps")->check(cli::at_least(1));
  app.add_option("--guidance_scale", f.guidance_scale, "How strictly to follow the prompt");
  app.add_option("--scheduler", f.scheduler, "Sampling method")
      ->check(cli::one_of(sd::scheduler_names()));
  app.group("Measures");
  app.add_option("--emoji_vectors", f.emoji_vectors,
                 "File of emoji to compare with; with it the measures are printed");
  app.add_option("--emoji", f.emoji, "The emoji that the subject should look like");
  app.group("Running");
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
}

using Row = std::vector<images::Image>;

// One row: every prompt with every seed, the same noise in every row.
Row draw_row(sd::StableDiffusion& pipeline, const Flags& flags, const std::string& title) {
  Row row;
  const auto count = static_cast<int64_t>(flags.prompts.size());
  cli::Progress progress(title, count * flags.steps);
  for (int64_t i = 0; i < count; ++i) {
    auto options = sd::SampleOptions()
                       .prompt(flags.prompts[static_cast<std::size_t>(i)])
                       .num_inference_steps(flags.steps)
                       .guidance_scale(flags.guidance_scale)
                       .num_images_per_prompt(flags.seeds)
                       .seed(static_cast<uint64_t>(flags.seed + i))
                       .scheduler(flags.scheduler);
    options.callback([&](int64_t done, int64_t) { progress.update(i * flags.steps + done); });
    const auto pictures = pipeline.sample(options).pictures;
    for (int64_t k = 0; k < flags.seeds; ++k) row.push_back(images::to_image(pictures[k] * 2 - 1));
  }
  progress.finish();
  return row;
}

std::vector<std::string> column_labels(const Flags& flags) {
  std::vector<std::string> labels;
  for (const auto& prompt : flags.prompts) {
    for (int64_t k = 0; k < flags.seeds; ++k) labels.push_back(prompt);
  }
  return labels;
}

void save_sheets(const Flags& flags, const Row& before, const Row& after) {
  const std::filesystem::path folder(flags.output_dir);
  const auto labels = column_labels(flags);
  const auto save = [&](const char* name, const images::Sheet& sheet) {
    const auto path = (folder / name).string();
    images::save_png(path, images::draw_sheet(sheet));
    std::cout << "picture: " << path << " ("
              << cli::format_bytes(static_cast<int64_t>(std::filesystem::file_size(path))) << ")\n";
  };
  save("before.png", {"Before training", labels, {}, {before}});
  save("after.png", {"After training", labels, {}, {after}});
  images::Sheet sheet{"Same prompts, same noise", labels, {"before", "after"}, {before, after}};
  if (!flags.subject_pictures.empty()) {
    Row photos;
    for (const auto& path : images::list_images(flags.subject_pictures).images) {
      if (photos.size() == before.size()) break;
      photos.push_back(images::resize(images::load_image(path), before[0].width, before[0].height,
                                      images::Filter::kLanczos));
    }
    sheet.rows.insert(sheet.rows.begin(), photos);
    sheet.row_labels.insert(sheet.row_labels.begin(), "trained on");
  }
  save("contact_sheet.png", sheet);
}

// Median rank of the subject among all emoji, and the share of followed backgrounds.
std::string measure(const Flags& flags, const images::EmojiVectors& emoji, const Row& row) {
  const auto found = images::fidelity(emoji, flags.emoji, row, column_labels(flags));
  return "a " + flags.emoji + " is number " + std::to_string(found.median_rank + 1) + " of " +
         std::to_string(emoji.names().size()) + " emoji by likeness (median); background as asked in " +
         std::to_string(found.followed) + " of " + std::to_string(found.asked) + " pictures";
}

void run(const Flags& flags) {
  std::filesystem::create_directories(flags.output_dir);
  const auto options = sd::StableDiffusionOptions()
                           .device(sd::pick_device(flags.device))
                           .model_config(flags.model_config)
                           .allow_trailing_bytes(flags.allow_trailing_bytes);
  sd::StableDiffusion pipeline(flags.model, options);
  const Row before = draw_row(pipeline, flags, "Before");
  const auto loras = sd::merge_loras(pipeline, {sd::parse_lora(flags.lora)});
  const Row after = draw_row(pipeline, flags, "After");
  save_sheets(flags, before, after);
  if (flags.emoji_vectors.empty()) return;
  const images::EmojiVectors emoji(flags.emoji_vectors);
  std::cout << "before: " << measure(flags, emoji, before) << "\n"
            << "after:  " << measure(flags, emoji, after) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("before_after", "Draws the same prompts with and without a LoRA, side by side.",
               "before_after --pretrained_model_name_or_path stable-diffusion-v1-5 --lora "
               "out/lightlora.safetensors --prompt 'a photo of sks dog on the moon'");
  add_flags(app, flags);
  return cli::run(argc, argv, app, [&] { run(flags); });
}
