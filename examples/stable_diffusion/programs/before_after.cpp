// SPDX-License-Identifier: Apache-2.0
// Draws the same prompts with and without a LoRA, from the same noise, side by side.
// Writes before.png, after.png and contact_sheet.png into the output folder; with --emoji it
// ends with the measures: is the subject recognised, how much does it look like itself, and does
// the prompt still decide the background.
#include <torch/torch.h>

#include <filesystem>
#include <random>

#include "pipeline/device.h"
#include "pipeline/embeddings.h"
#include "pipeline/lora.h"
#include "pipeline/model_options.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"
#include "support/cli/progress.h"
#include "support/cli/run.h"
#include "support/files/outputs.h"
#include "support/images/load.h"
#include "support/images/measures.h"
#include "support/images/png.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"
#include "support/images/tensor.h"

namespace {

struct Options {
  sd::ModelOptions model;
  std::string lora, subject_pictures, output_dir = "before_after", emoji_vectors, emoji;
  std::vector<std::string> prompts, unmeasured;
  std::size_t measured = 0;  // pictures of a row, the first ones
  std::string device = "auto";
  int64_t seeds = 2;
  uint64_t seed = 0;
  bool new_seed = false, save_pictures = false;
  sd::SampleOptions sample = sd::SampleOptions().num_inference_steps(30).guidance_scale(5);
};

void bind(cli::App& app, Options& options) {
  app.group("Required");
  sd::bind_model(app, options.model);
  app.add_option("--lora", options.lora, "LoRA file as FILE or FILE:WEIGHT")->required();
  app.add_option("--prompt", options.prompts, "What to draw; may be repeated")->required();
  app.group("Files");
  sd::bind_single_file(app, options.model);
  app.group("Pictures");
  app.add_option("--output_dir", options.output_dir, "Folder for the pictures");
  app.add_option("--subject_pictures", options.subject_pictures,
                 "Folder with the subject's pictures, for the first row of the contact sheet");
  app.add_option("--unmeasured_prompt", options.unmeasured,
                 "What to draw beside them, outside the measures; may be repeated");
  app.add_flag("--save_pictures", options.save_pictures,
               "Also write every picture by itself: before-0.png, after-0.png and so on");
  app.add_option("--seeds", options.seeds, "Pictures per prompt")->check(cli::at_least(1));
  app.add_seed("--seed", options.seed, options.new_seed, "First seed; -1 is a new one, printed");
  app.add_option("--num_inference_steps", options.sample.num_inference_steps(), "Denoising steps")
      ->check(cli::at_least(1));
  app.add_option("--guidance_scale", options.sample.guidance_scale(),
                 "How strictly to follow the prompt");
  app.add_option("--scheduler", options.sample.scheduler(), "Sampling method")
      ->check(cli::one_of(sd::scheduler_names()));
  app.group("Measures");
  app.add_option("--emoji_vectors", options.emoji_vectors,
                 "File of emoji to compare with; with it the measures are printed");
  app.add_option("--emoji", options.emoji, "The emoji that the subject should look like");
  app.group("Running");
  app.add_option("--device", options.device, "Where to compute")
      ->check(cli::one_of(sd::device_names()));
}

using Row = std::vector<images::Image>;

// One row: every prompt with every seed, the same noise in every row.
Row draw_row(sd::StableDiffusion& pipeline, const Options& options, const std::string& title) {
  Row row;
  const auto count = static_cast<int64_t>(options.prompts.size());
  const int64_t steps = options.sample.num_inference_steps();
  cli::Progress progress(title, count * steps);
  for (int64_t i = 0; i < count; ++i) {
    auto sample = options.sample;
    sample.prompt(options.prompts[static_cast<std::size_t>(i)])
        .num_images_per_prompt(options.seeds)
        .seed(options.seed + static_cast<uint64_t>(i))
        .callback([&](int64_t done, int64_t) { progress.update(i * steps + done); });
    const auto pictures = pipeline.sample(sample).pictures;
    for (int64_t k = 0; k < options.seeds; ++k)
      row.push_back(images::to_image(pictures[k] * 2 - 1));
  }
  progress.finish();
  return row;
}

std::vector<std::string> column_labels(const Options& options) {
  std::vector<std::string> labels;
  for (const auto& prompt : options.prompts) {
    for (int64_t k = 0; k < options.seeds; ++k) labels.push_back(prompt);
  }
  return labels;
}

std::string path_of(const Options& options, const std::string& name) {
  return (std::filesystem::path(options.output_dir) / name).string();
}

std::string picture_path(const Options& options, const std::string& row, std::size_t index) {
  return path_of(options, fmt::format("{}-{}.png", row, index));
}

void check_outputs(const Options& options) {
  sd::Outputs outputs;
  for (const char* name : {"before.png", "after.png", "contact_sheet.png"}) {
    outputs.add("--output_dir", path_of(options, name));
  }
  const std::size_t count = options.save_pictures ? column_labels(options).size() : 0;
  for (std::size_t i = 0; i < count; ++i) {
    outputs.add("--output_dir", picture_path(options, "before", i));
    outputs.add("--output_dir", picture_path(options, "after", i));
  }
  outputs.check();
}

void save_sheets(const Options& options, const Row& before, const Row& after) {
  const auto labels = column_labels(options);
  const auto save = [&](const char* name, const images::Sheet& sheet) {
    const auto path = path_of(options, name);
    images::save_png(path, images::draw_sheet(sheet));
    const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
    fmt::print("picture: {} ({})\n", path, cli::format_bytes(bytes));
  };
  save("before.png", {"Before training", labels, {}, {before}});
  save("after.png", {"After training", labels, {}, {after}});
  images::Sheet sheet{"Same prompts, same noise", labels, {"before", "after"}, {before, after}};
  if (!options.subject_pictures.empty()) {
    Row photos;
    for (const auto& path : images::list_images(options.subject_pictures).images) {
      if (photos.size() == before.size()) break;
      photos.push_back(images::resize(images::load_image(path), before[0].width, before[0].height,
                                      images::Filter::kLanczos));
    }
    sheet.rows.insert(sheet.rows.begin(), photos);
    sheet.row_labels.insert(sheet.row_labels.begin(), "trained on");
  }
  save("contact_sheet.png", sheet);
}

void save_each(const Options& options, const Row& before, const Row& after) {
  for (std::size_t i = 0; i < before.size(); ++i) {
    images::save_png(picture_path(options, "before", i), before[i]);
    images::save_png(picture_path(options, "after", i), after[i]);
  }
}

// Mean cosine with the subject's emoji, its median rank among all, and the share of followed
// backgrounds.
std::string measure(const Options& options, const images::EmojiVectors& emoji, const Row& row) {
  const auto count = static_cast<std::ptrdiff_t>(options.measured);
  auto labels = column_labels(options);
  labels.resize(options.measured);
  const auto found =
      images::fidelity(emoji, options.emoji, Row(row.begin(), row.begin() + count), labels);
  return fmt::format(
      "a {} is number {} of {} emoji by likeness (median), likeness {:.3f}; background as asked in "
      "{} of {} pictures",
      options.emoji, found.median_rank + 1, emoji.names().size(), found.cosine, found.followed,
      found.asked);
}

void run(Options& options) {
  if (options.new_seed) {
    std::random_device device;
    options.seed = device();
    fmt::print("seed: {}\n", options.seed);
  }
  options.measured = options.prompts.size() * static_cast<std::size_t>(options.seeds);
  options.prompts.insert(options.prompts.end(), options.unmeasured.begin(),
                         options.unmeasured.end());
  sd::make_folder(options.output_dir);
  check_outputs(options);
  auto load = options.model.load;
  load.device(sd::pick_device(options.device)).pack_weights(sd::PackWeights::off);
  sd::StableDiffusion pipeline(options.model.path, load);
  const Row before = draw_row(pipeline, options, "Before");
  const sd::AppliedLoRAs loras(pipeline, {sd::parse_lora(options.lora)});
  for (const auto& file : loras.with_embeddings()) {
    for (const auto& word : sd::add_bundled(pipeline, file)) {
      fmt::print("notice: '{}' holds a word too: {}\n", cli::printable(file),
                 cli::printable(word.problem.empty() ? word.token : word.problem));
    }
  }
  const Row after = draw_row(pipeline, options, "After");
  save_sheets(options, before, after);
  if (options.save_pictures) save_each(options, before, after);
  if (options.emoji_vectors.empty()) return;
  const images::EmojiVectors emoji(options.emoji_vectors);
  fmt::print("before: {}\nafter:  {}\n", measure(options, emoji, before),
             measure(options, emoji, after));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  cli::App app("before_after", "Draws the same prompts with and without a LoRA, side by side.",
               "before_after --pretrained_model_name_or_path stable-diffusion-v1-5 --lora "
               "out/lightlora.safetensors --prompt 'a photo of sks dog on the moon'");
  bind(app, options);
  return cli::run(argc, argv, app, [&] { run(options); });
}
