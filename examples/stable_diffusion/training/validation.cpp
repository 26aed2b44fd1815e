// SPDX-License-Identifier: Apache-2.0
#include "training/validation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <map>
#include <system_error>

#include "support/cli/fmt.h"
#include "support/cli/message.h"
#include "support/cli/progress.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "support/images/sheet.h"
#include "support/images/tensor.h"
#include "training/picture_text.h"

namespace training {

namespace {

constexpr int64_t kLevels = 4, kFewestSamples = 8, kMostSamples = 32, kDrawingSteps = 25;
constexpr size_t kMostSheetRows = 12;

// Evaluation mode with the adapters on, while it lives.
struct Evaluation {
  explicit Evaluation(Trainer& trainer_) : trainer(trainer_), active(trainer_.activate()) {
    set_training(false);
  }
  ~Evaluation() { set_training(true); }
  void set_training(bool on) const {
    trainer.unet()->train(on);
    for (const auto& adapters : trainer.adapters()) adapters->train(on);
  }
  Trainer& trainer;
  std::vector<lightlora::Activation> active;
  at::NoGradGuard no_grad;
};

}  // namespace

ValidationLoss::ValidationLoss(LatentSource& latents, const std::string& prompt,
                               const DiffusionLoss& loss, uint64_t seed) {
  const auto& dataset = latents.dataset();
  const int64_t count = std::clamp(dataset.size(), kFewestSamples, kMostSamples);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t picture = i % dataset.size();
    auto generator = generator_for(seed, Stream::validation, i);
    const auto drawn = latents.sample(picture, generator);
    auto sample = loss.draw(drawn.latents, generator);
    sample.time_ids = drawn.time_ids;
    sample.mask = drawn.mask;
    sample.timestep = (2 * i + 1) * loss.num_train_timesteps() / (2 * count);
    batch_.samples.push_back(std::move(sample));
    batch_.captions.push_back(
        fixed_caption(dataset.caption(picture, prompt), dataset.file(picture).caption_options));
  }
}

Numbers ValidationLoss::measure(Trainer& trainer) const {
  const Evaluation evaluation(trainer);
  const int64_t timesteps = trainer.loss().num_train_timesteps();
  // As most of the loss lies where there is little noise, the mean hides the rest.
  std::array<double, kLevels> sums{};
  std::array<int64_t, kLevels> counts{};
  double sum = 0;
  cli::Progress progress("Validation loss", static_cast<int64_t>(batch_.samples.size()));
  for (size_t i = 0; i < batch_.samples.size(); ++i) {
    const auto text = trainer.prompts().states({batch_.captions[i]});
    const double loss = trainer.loss()(trainer.unet(), {batch_.samples[i]}, text).item<double>();
    const auto level = static_cast<size_t>(batch_.samples[i].timestep * kLevels / timesteps);
    sum += loss;
    sums.at(level) += loss;
    ++counts.at(level);
    progress.update(static_cast<int64_t>(i) + 1);
  }
  progress.finish();
  Numbers numbers{{"validation_loss", sum / static_cast<double>(batch_.samples.size())}};
  for (int64_t level = 0; level < kLevels; ++level) {
    const auto at = static_cast<size_t>(level);
    if (counts.at(at) == 0) continue;
    const auto begins = [&](int64_t l) { return (l * timesteps + kLevels - 1) / kLevels; };
    numbers.emplace_back(fmt::format("validation_loss_{}_{}", begins(level), begins(level + 1) - 1),
                         sums.at(at) / static_cast<double>(counts.at(at)));
  }
  return numbers;
}

ValidationPictureOptions validation_pictures(const TrainingOptions& training) {
  const RunOptions& run = training.run;
  const uint64_t seed = training.machine.seed;
  const std::filesystem::path folder = run.output_dir;
  ValidationPictureOptions options;
  for (int64_t i = 0; i < run.num_validation_images && !run.validation_prompt.empty(); ++i) {
    options.prompts.push_back({run.validation_prompt, "", seed + static_cast<uint64_t>(i)});
  }
  options.title = run.validation_prompt;
  if (!run.sample_prompts.empty()) {
    const auto more = read_sample_prompts(run.sample_prompts, seed);
    options.prompts.insert(options.prompts.end(), more.begin(), more.end());
  }
  options.model = training.model;
  options.folder = (folder / "validation").string();
  options.sheet = (folder / "contact_sheet.png").string();
  return options;
}

std::string ValidationPictures::path(int64_t step, int64_t index) const {
  return (std::filesystem::path(options_.folder) / fmt::format("step-{:06}-{}.png", step, index))
      .string();
}

void ValidationPictures::draw(sd::StableDiffusion& pipeline, Trainer& trainer, RunLog& log) const {
  std::filesystem::create_directories(options_.folder);
  const Evaluation evaluation(trainer);
  int64_t all = 0, before = 0;
  for (const auto& prompt : options_.prompts) all += prompt.steps.value_or(kDrawingSteps);
  cli::Progress progress("Validation pictures", all);
  // As sd-scripts cuts sizes to what the model can draw.
  const auto drawable = [&](std::optional<int64_t> side) {
    const int64_t factor = pipeline.vae_scale_factor();
    if (side) side = std::max(factor, *side - *side % factor);
    return side;
  };
  for (std::size_t i = 0; i < options_.prompts.size(); ++i) {
    const auto& prompt = options_.prompts[i];
    const int64_t steps = prompt.steps.value_or(kDrawingSteps);
    const auto index = static_cast<int64_t>(i);
    auto sample = sd::SampleOptions()
                      .prompt(prompt.prompt)
                      .prompt_syntax(sd::PromptSyntax::plain)  // as captions
                      .clip_skip(options_.clip_skip)
                      .num_inference_steps(steps)
                      .height(drawable(prompt.height))
                      .width(drawable(prompt.width))
                      .scheduler("dpmpp_2m")
                      .seed(prompt.seed)
                      .callback([&](int64_t step, int64_t) { progress.update(before + step); });
    if (!prompt.negative_prompt.empty()) sample.negative_prompt(prompt.negative_prompt);
    if (prompt.guidance_scale) sample.guidance_scale(*prompt.guidance_scale);
    const auto result = pipeline.sample(sample);
    before += steps;
    const std::string file = path(trainer.steps_done(), index);
    const auto picture = images::to_image(result.pictures[0] * 2 - 1);
    images::save_png(file, picture,
                     {{"parameters", picture_text(options_.model, options_.learned_embeds, sample,
                                                  picture, prompt.seed)}});
    log.add_picture(fmt::format("validation/{}", i), file, trainer.steps_done());
  }
  progress.finish();
}

// The pictures by step, each in its prompt's column, of those that this run has drawn: one that went
// back to an earlier checkpoint has left what it drew beyond. What else lies in the folder, or has
// been changed or taken away there, is no reason for a run to fail at its end.
std::map<int64_t, std::vector<images::Image>> ValidationPictures::drawn(int64_t last_step) const {
  std::map<int64_t, std::vector<images::Image>> rows;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(options_.folder, error), end;
       !error && entry != end; entry.increment(error)) {
    unsigned long long step = 0, index = 0;
    const std::string name = entry->path().filename().string();
    const bool named = std::sscanf(name.c_str(), "step-%llu-%llu.png", &step, &index) == 2;
    if (!named || step > static_cast<unsigned long long>(last_step)) continue;
    if (index >= options_.prompts.size()) continue;
    const auto own = path(static_cast<int64_t>(step), static_cast<int64_t>(index));
    if (std::filesystem::path(own).filename().string() != name) continue;
    try {
      auto picture = images::load_image(entry->path().string());
      auto& row = rows[static_cast<int64_t>(step)];
      row.resize(options_.prompts.size());
      row[index] = std::move(picture);
    } catch (const c10::Error& problem) {
      fmt::print("notice: not on the contact sheet: {}\n",
                 cli::message_line(problem.what_without_backtrace()));
    }
  }
  return rows;
}

void ValidationPictures::write_sheet(int64_t last_step) const {
  auto rows = drawn(last_step);
  if (rows.empty()) return;
  images::Sheet sheet;
  sheet.title = options_.title;
  for (const auto& prompt : options_.prompts) {
    const auto seed = fmt::format("seed {}", prompt.seed);
    sheet.column_labels.push_back(
        prompt.prompt == options_.title ? seed : fmt::format("{}, {}", prompt.prompt, seed));
  }
  const size_t stride = (rows.size() + kMostSheetRows - 1) / kMostSheetRows;
  size_t number = 0;
  for (auto& [step, pictures] : rows) {
    const bool last = ++number == rows.size();
    if (!last && (number - 1) % stride != 0) continue;
    sheet.row_labels.push_back(fmt::format("step {}", step));
    sheet.rows.push_back(std::move(pictures));
  }
  images::save_png(options_.sheet, images::draw_sheet(sheet));
}

}  // namespace training
