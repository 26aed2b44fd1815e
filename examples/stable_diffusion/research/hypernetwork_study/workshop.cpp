// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/workshop.h"

#include <ATen/ATen.h>
#include <lightlora/embeddings.h>
#include <lightlora/files.h>
#include <torch/utils.h>

#include <cmath>
#include <filesystem>

#include "support/cli/fmt.h"
#include "support/cli/watch.h"
#include "support/files/outputs.h"
#include "support/images/png.h"
#include "support/images/tensor.h"
#include "training/adapters.h"
#include "training/inversion.h"

namespace hyperstudy {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPictureSeed = 2026;
constexpr double kWordRate = 2e-2;
constexpr const char* kSubject = "<subject>";

// Puts the base's weights back when it ends.
class Restored {
 public:
  explicit Restored(const std::vector<std::pair<at::Tensor, at::Tensor>>& kept) : kept_(kept) {}
  ~Restored() {
    const torch::NoGradGuard no_grad;
    for (const auto& [weight, copy] : kept_) at::Tensor(weight).copy_(copy);
  }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  const std::vector<std::pair<at::Tensor, at::Tensor>>& kept_;
};

// Every way adapts the layers that the networks predict for.
training::AdapterOptions adapter_options(const Job& job, const Settings& settings) {
  const int64_t rank = settings.rank;
  training::AdapterOptions options;
  options.target_modules = settings.train.adapter.target_modules;
  options.variant = job.method.variant;
  options.lora.rank(rank);
  options.init_from = job.start;
  if (job.method.relaxes) options.relax_rank = rank;
  return options;
}

training::InversionOptions word_options(const Settings& settings, const Job& job,
                                        const std::string& folder) {
  training::InversionOptions options;
  options.model = settings.train.model;
  options.train_data_dir = folder;
  options.placeholder_token = kSubject;
  options.initializer_token = settings.initializer;
  options.machine.device = "cpu";
  options.machine.seed = job.seed;
  options.data.cache_latents = true;
  options.data.center_crop = true;
  options.data.random_flip = false;
  options.optimization.train_batch_size = settings.batch_size;
  options.optimization.max_train_steps = job.method.points.back();
  options.optimization.learning_rate = job.rate;
  return options;
}

double rms(const images::Image& a, const images::Image& b) {
  const auto difference = images::to_tensor(a) - images::to_tensor(b);  // of -1 to 1
  return std::sqrt(difference.square().mean().item<double>()) / 2;
}

}  // namespace

double usual_rate(const Method& method) {
  if (method.word) return kWordRate;
  training::AdapterOptions options;
  options.variant = method.variant;
  return training::usual_rate(options);
}

Workshop::Workshop(const Settings& settings, std::vector<Thing> things, Judge& judge)
    : settings_(settings),
      things_(std::move(things)),
      judge_(judge),
      pipeline_(settings.train.model.path) {
  for (const auto& weight : pipeline_.unet()->parameters()) {
    kept_.emplace_back(weight, weight.detach().clone());
  }
  class_pictures_ = draw(pipeline_, settings_.class_prompts);
}

std::vector<images::Image> Workshop::draw(sd::StableDiffusion& pipeline,
                                          const std::vector<std::string>& prompts) const {
  const torch::NoGradGuard no_grad;
  pipeline.unet()->eval();
  std::vector<images::Image> pictures;
  for (const auto& prompt : prompts) {
    auto options = sd::SampleOptions().prompt(prompt).seed(kPictureSeed + pictures.size());
    options.num_inference_steps(settings_.picture_steps).guidance_scale(settings_.guidance_scale);
    options.prompt_syntax(sd::PromptSyntax::plain);
    pictures.push_back(images::to_image(pipeline.sample(options).pictures[0] * 2 - 1));
  }
  return pictures;
}

double Workshop::drift(sd::StableDiffusion& pipeline) const {
  const auto now = draw(pipeline, settings_.class_prompts);
  double sum = 0;
  for (size_t i = 0; i < now.size(); ++i) sum += rms(now[i], class_pictures_[i]);
  return now.empty() ? 0 : sum / static_cast<double>(now.size());
}

Point Workshop::measure(const Job& job, sd::StableDiffusion& pipeline, int64_t steps,
                        double seconds) {
  const auto& words = settings_.train.instance_prompt;
  auto prompts = settings_.prompts(things_[job.thing].caption(words));
  if (job.method.word) {
    for (auto& prompt : prompts) prompt.replace(0, words.size(), std::string("a ") + kSubject);
  }
  const auto pictures = draw(pipeline, prompts);
  Point point;
  point.steps = steps;
  point.seconds = seconds;
  point.scores = judge_.scores(job.thing, pictures, prompts);
  // Another word changes nothing that does not use it.
  if (!job.method.word) point.scores.drift = drift(pipeline);
  point.pictures = {fmt::format("{}-{}.png", job.stem, steps)};
  images::save_png(point.pictures[0], pictures.at(0));
  return point;
}

training::Trainer Workshop::make_trainer(const Job& job, const lightlora::Patched& adapters) {
  const auto& thing = things_[job.thing];
  training::PictureFile shown = thing.shown();
  shown.caption = thing.caption(settings_.train.instance_prompt);
  training::DatasetOptions cut;
  cut.resolution = settings_.train.resolution.value_or(pipeline_.default_size()[0]);
  cut.center_crop = true;
  training::LatentSource latents(training::ImageDataset({shown}, cut), pipeline_.vae(),
                                 /*cache=*/true, job.seed);
  latents.encode_all();
  training::PromptStates prompts(
      [this](const std::vector<std::string>& texts) { return pipeline_.encode_prompt(texts); });
  prompts.prepare({*shown.caption});
  training::SampleOptions samples;
  samples.batch_size = settings_.batch_size;
  samples.seed = job.seed;
  training::TrainerOptions options;
  options.seed = job.seed;
  return {
      {pipeline_.unet(),
       training::DiffusionLoss(sd::NoiseSchedule(pipeline_.scheduler_config()), {}),
       std::move(prompts),
       training::SampleSource(std::move(latents), samples),
       std::nullopt,
       {adapters},
       {{"all", 1, adapters->parameters()}}},
      training::LearningRate(training::Schedule::constant, job.rate, 0, job.method.points.back()),
      options};
}

void Workshop::tune_adapters(const Job& job, Run& run) {
  cli::Watch clock;
  const auto options = adapter_options(job, settings_);
  const auto start = training::read_start(options);
  const Restored restored(kept_);
  const auto adapters = training::add_adapters(training::with_start(options, start),
                                               *pipeline_.unet(), {}, job.seed, start);
  auto trainer = make_trainer(job, adapters.unet);
  double seconds = job.start_seconds + clock.lap();
  for (const int64_t steps : job.method.points) {
    clock.lap();
    while (trainer.steps_done() < steps) trainer.step();
    seconds += clock.lap();
    const auto own = adapters.state();
    const auto path = job.stem + ".safetensors";
    lightlora::save(options.relax_rank ? training::joined(start, own) : own, path);
    run.bytes = static_cast<int64_t>(fs::file_size(path));
    run.trained = trainer.trained_values();
    adapters.unet->merge(/*safe=*/true);
    run.points.push_back(measure(job, pipeline_, steps, seconds));
    adapters.unet->unmerge();
  }
}

void Workshop::tune_word(const Job& job, Run& run) {
  const auto folder = job.stem + "-shown";
  sd::make_folder(folder);
  const fs::path shown = things_[job.thing].shown().path;
  fs::copy_file(shown, fs::path(folder) / shown.filename(), fs::copy_options::overwrite_existing);
  training::Inversion inversion(word_options(settings_, job, folder));
  cli::Watch clock;
  double seconds = 0;
  for (const int64_t steps : job.method.points) {
    clock.lap();
    while (inversion.trainer().steps_done() < steps) inversion.trainer().step();
    seconds += clock.lap();
    lightlora::save_embedding(job.stem + ".safetensors", inversion.embedding());
    run.points.push_back(measure(job, inversion.pipeline(), steps, seconds));
  }
  run.bytes = static_cast<int64_t>(fs::file_size(job.stem + ".safetensors"));
  run.trained = inversion.trainer().trained_values();
  fs::remove_all(folder);
}

Run Workshop::make(const Job& job) {
  Run run;
  run.settings = job.settings;
  run.rate = job.rate;
  try {
    if (job.method.word) {
      tune_word(job, run);
    } else {
      tune_adapters(job, run);
    }
  } catch (const c10::Error& error) {
    // A rate that is too high; anything else would have shown before the first picture.
    if (job.rate <= usual_rate(job.method)) throw;
    fmt::print("notice: {}: {}\n", job.stem, error.what_without_backtrace());
    const images::Image nothing(8, 8);
    for (size_t i = run.points.size(); i < job.method.points.size(); ++i) {
      Point point;
      point.steps = job.method.points[i];
      point.pictures = {fmt::format("{}-{}.png", job.stem, point.steps)};
      images::save_png(point.pictures[0], nothing);
      run.points.push_back(std::move(point));
    }
  }
  return run;
}

}  // namespace hyperstudy
