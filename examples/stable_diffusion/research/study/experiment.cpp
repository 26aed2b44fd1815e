// SPDX-License-Identifier: Apache-2.0
#include "research/study/experiment.h"

#include <lightlora/combine.h>
#include <lightlora/files.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <utility>

#include "pipeline/embeddings.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/distributed/fingerprint.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "support/images/tensor.h"
#include "training/adapters.h"

namespace study {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kFixedSeed = 2026;  // of the word, the validation loss and the pictures
constexpr double kInversionRate = 2e-2;
constexpr int64_t kCurvePoints = 5;

std::vector<training::PictureFile> subject_pictures(const Settings& settings) {
  auto files = training::read_data_folder(settings.subject).pictures;
  for (auto& file : files) {
    auto text = file.caption.value_or("a " + settings.subject_words);
    const auto place = text.find(settings.subject_words);
    TORCH_CHECK(place != std::string::npos, "'", file.path, "': expected a caption with '",
                settings.subject_words, "', got '", text, "'; hint: --subject_words");
    file.caption = text.replace(place, settings.subject_words.size(), kWord);
  }
  return files;
}

training::AdapterOptions adapter_options(const Variant& variant, uint64_t seed) {
  training::AdapterOptions options;
  options.variant = variant.variant;
  options.lora.rank(variant.rank).init(lightlora::parse_init(variant.init));
  // Seeds differ in their bases too.
  lightlora::OwnOptions own{{"aux_in", fmt::to_string(variant.aux_in)},
                            {"aux_out", fmt::to_string(variant.aux_out)},
                            {"aux_init", variant.aux_init},
                            {"aux_seed", fmt::to_string(seed)}};
  own.insert(variant.own.begin(), variant.own.end());
  const auto& entry = lightlora::find_variant(variant.variant);
  for (const auto& [name, value] : own) {
    if (entry.takes(name)) options.lora.own()[name] = value;
  }
  options.check();
  return options;
}

// A word for the subject, learned by textual inversion.
training::InversionOptions inversion_options(const Settings& settings, bool layerwise, double rate,
                                             uint64_t seed) {
  training::InversionOptions options;
  options.model.path = settings.model;
  options.train_data_dir = settings.subject;
  options.placeholder_token = kWord;
  options.initializer_token = settings.initializer;
  options.layerwise = layerwise;
  options.machine.device = "cpu";
  options.machine.seed = seed;
  options.data.cache_latents = true;
  options.data.random_flip = false;
  options.optimization.train_batch_size = settings.batch_size;
  options.optimization.max_train_steps = settings.inversion_steps;
  options.optimization.learning_rate = rate;
  return options;
}

double largest_change(const lightlora::AdapterState& before, const lightlora::AdapterState& after) {
  double largest = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    for (const auto& [name, value] : before[i].trained) {
      const auto change = (after[i].trained.at(name) - value).abs().max().item<double>();
      largest = std::max(largest, change);
    }
  }
  return largest;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int64_t bytes_of(const std::string& path) { return static_cast<int64_t>(fs::file_size(path)); }

// As it is drawn and given away: a core that is to be split is split here.
lightlora::AdapterState usable(const lightlora::AdapterState& trained,
                               const std::optional<int64_t>& split_rank) {
  return split_rank ? lightlora::cut(trained, lightlora::Keep::rank(*split_rank)) : trained;
}

int64_t save_exported(const std::string& path, const lightlora::AdapterState& state) {
  lightlora::save({{"unet", state}}, path, lightlora::Format::diffusers);
  return bytes_of(path);
}

// Share of the squared singular values that a rank keeps, over all layers.
double energy_kept(const lightlora::AdapterState& fused, int64_t rank) {
  double kept = 0, all = 0;
  for (const auto& layer : fused) {
    const auto squares =
        at::linalg_svdvals(layer.trained.at("down_up").to(torch::kDouble)).square();
    kept += squares.slice(0, 0, rank).sum().item<double>();
    all += squares.sum().item<double>();
  }
  return all > 0 ? kept / all : 1;
}

}  // namespace

std::string Settings::word_settings() const {
  return fmt::format("{} ({}), {}, from '{}' in {} steps of {} pictures", model, weights, subject,
                     initializer, inversion_steps, batch_size);
}

std::string Settings::to_string() const {
  return fmt::format("{}, in place of '{}', {} steps, {} DDIM steps, guidance {}, '{}' of {}, {}",
                     word_settings(), subject_words, steps, picture_steps,
                     cli::format_exact(guidance_scale), emoji, emoji_vectors,
                     fmt::join(backgrounds, ", "));
}

std::vector<std::string> Settings::prompts() const {
  std::vector<std::string> prompts;
  for (const auto& colour : backgrounds) {
    prompts.push_back(fmt::format("a {} on a {} background", kWord, colour));
  }
  return prompts;
}

std::string Settings::word_file() const {
  distributed::Fingerprint print;
  print.add(word_settings());
  return (fs::path(work_dir) / fmt::format("word-{}.safetensors", print.hexadecimal())).string();
}

Experiment::Experiment(const Settings& settings)
    : settings_(settings),
      pipeline_(settings.model),
      emoji_(settings.emoji_vectors),
      loss_(sd::NoiseSchedule(pipeline_.scheduler_config()), training::LossOptions()) {
  fs::create_directories(settings.work_dir);
  learn_word();
  training::DatasetOptions options;
  options.resolution = pipeline_.default_size()[0];
  latents_.emplace(training::ImageDataset(subject_pictures(settings), options), pipeline_.vae(),
                   /*cache=*/true, kFixedSeed);
  latents_->encode_all();
  validation_.emplace(*latents_, "", loss_, kFixedSeed);
  prompts_.emplace(
      [this](const std::vector<std::string>& texts) { return pipeline_.encode_prompt(texts); });
  prompts_->prepare(validation_->captions());  // every picture is among them
}

void Experiment::learn_word() {
  const auto file = settings_.word_file();
  if (!fs::exists(file)) {
    training::Inversion inversion(
        inversion_options(settings_, /*layerwise=*/false, kInversionRate, kFixedSeed));
    for (int64_t i = 0; i < settings_.inversion_steps; ++i) inversion.trainer().step();
    lightlora::save_embedding(file, inversion.embedding());
    fmt::print("learned the word {}: {} values, {}\n", kWord, inversion.trainer().trained_values(),
               cli::format_bytes(bytes_of(file)));
  }
  for (const auto& word : lightlora::load_embeddings(file)) sd::add_embedding(pipeline_, word);
}

std::string Experiment::path(const Variant& variant, double rate, uint64_t seed) const {
  std::string name = variant.variant;
  if (!variant.is_word()) {
    name += fmt::format("-{}-{}-rank{}-a{}-b{}", variant.init, variant.aux_init, variant.rank,
                        variant.aux_in, variant.aux_out);
    for (const auto& [option, value] : variant.own) name += fmt::format("-{}{}", option, value);
  }
  name += fmt::format("-rate{}-seed{}", cli::format_exact(rate), seed);
  return (fs::path(settings_.work_dir) / name).string();
}

bool Experiment::is_done(const Variant& variant, double rate, uint64_t seed) const {
  return load_result(result_file(variant, rate, seed), settings_.to_string()).has_value();
}

ModelInfo Experiment::model_info() {
  ModelInfo info;
  info.size = pipeline_.default_size()[0];
  info.layers = attention_layers(*pipeline_.unet());
  info.new_backgrounds = true;
  for (const auto& file : subject_pictures(settings_)) {
    for (const auto& colour : settings_.backgrounds) {
      const bool named = file.caption->find(" " + colour + " ") != std::string::npos;
      info.new_backgrounds = info.new_backgrounds && !named;
    }
  }
  return info;
}

training::Trainer Experiment::make_trainer(const lightlora::Patched& adapters, double rate,
                                           uint64_t seed) {
  training::SampleOptions samples;
  samples.batch_size = settings_.batch_size;
  samples.seed = seed;
  training::TrainerOptions options;
  options.total_steps = settings_.steps;
  options.seed = seed;
  return {{pipeline_.unet(),
           loss_,
           *prompts_,
           training::SampleSource(*latents_, samples),
           std::nullopt,
           {adapters},
           {{"all", 1, adapters->parameters()}}},
          training::LearningRate(training::Schedule::constant, rate, 0, settings_.steps),
          options};
}

Result Experiment::train(const Variant& variant, double rate, uint64_t seed) {
  const auto stem = path(variant, rate, seed);
  if (const auto done = load_result(stem + ".json", settings_.to_string())) return *done;
  Result result;
  result.settings = settings_.to_string();
  result.rate = rate;
  result.rank = variant.rank;
  result.aux_in = variant.aux_in;
  result.aux_out = variant.aux_out;
  try {
    if (variant.is_word()) {
      train_word(variant, rate, seed, stem, result);
    } else {
      train_adapters(variant, rate, seed, stem, result);
    }
    result.diverged = !std::isfinite(result.quality.loss);
  } catch (const c10::Error& error) {
    result.diverged = true;
    fmt::print("notice: {}\n", error.what_without_backtrace());
  }
  if (result.diverged) result.quality = Quality();
  save_result(stem + ".json", result);
  return result;
}

void Experiment::follow(training::Trainer& trainer, int64_t steps, const std::string& name,
                        Result& result) {
  result.start_loss = validation_->measure(trainer).front().second;
  result.curve.emplace_back(0, result.start_loss);
  std::vector<double> seconds;
  const int64_t interval = std::max<int64_t>(1, steps / kCurvePoints);
  for (int64_t step = 1; step <= steps; ++step) {
    const auto begin = Clock::now();
    trainer.step();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    if (step % interval != 0) continue;
    const double loss = validation_->measure(trainer).front().second;
    TORCH_CHECK(std::isfinite(loss), name, ": no finite loss after step ", step);
    result.curve.emplace_back(step, loss);
  }
  result.seconds_per_step = median(std::move(seconds));
}

void Experiment::train_word(const Variant& variant, double rate, uint64_t seed,
                            const std::string& stem, Result& result) {
  training::Inversion inversion(
      inversion_options(settings_, variant.variant == kLayerwise, rate, seed));
  const auto start = inversion.embedding().vectors;
  follow(inversion.trainer(), settings_.inversion_steps, variant.name, result);
  result.trainable = inversion.trainer().trained_values();
  result.moved = (inversion.embedding().vectors - start).abs().max().item<double>();
  lightlora::save_embedding(stem + ".safetensors", inversion.embedding());
  result.native_bytes = result.exported_bytes = bytes_of(stem + ".safetensors");
  result.quality.loss = result.curve.back().second;
  draw(inversion.pipeline(), stem, result.quality);
}

void Experiment::train_adapters(const Variant& variant, double rate, uint64_t seed,
                                const std::string& stem, Result& result) {
  train_steps(variant, rate, seed, stem, result);
  const auto state = usable(lightlora::read_state(stem + ".safetensors"), variant.split_rank);
  result.native_bytes = bytes_of(stem + ".safetensors");
  try {
    result.exported_bytes = save_exported(stem + ".diffusers.safetensors", state);
  } catch (const c10::Error& error) {  // a variant without a form in other formats
    fmt::print("notice: {}: {}\n", variant.name, error.what_without_backtrace());
  }
  result.quality = measure(state, stem);
}

void Experiment::train_steps(const Variant& variant, double rate, uint64_t seed,
                             const std::string& stem, Result& result) {
  const auto adapters =
      training::add_adapters(adapter_options(variant, seed), *pipeline_.unet(), {}, seed);
  result.trainable = adapters.unet->report().trainable;
  const auto start = adapters.unet->state();
  auto trainer = make_trainer(adapters.unet, rate, seed);
  follow(trainer, settings_.steps, variant.name, result);
  result.moved = largest_change(start, adapters.unet->state());
  lightlora::save(adapters.state(), stem + ".safetensors");
}

Quality Experiment::measure(const lightlora::AdapterState& state, const std::string& stem) {
  Quality quality;
  const auto adapters = lightlora::patch(*pipeline_.unet(), state);
  auto trainer = make_trainer(adapters, 0, kFixedSeed);
  quality.loss = validation_->measure(trainer).front().second;
  adapters->merge(/*safe=*/true);
  draw(pipeline_, stem, quality);
  adapters->unmerge();
  return quality;
}

void Experiment::draw(sd::StableDiffusion& pipeline, const std::string& stem, Quality& quality) {
  pipeline.unet()->eval();
  std::vector<images::Image> pictures;
  for (const auto& prompt : settings_.prompts()) {
    const auto number = pictures.size();
    const auto result = pipeline.sample(sd::SampleOptions()
                                            .prompt(prompt)
                                            .num_inference_steps(settings_.picture_steps)
                                            .guidance_scale(settings_.guidance_scale)
                                            .seed(kFixedSeed + number));
    quality.pictures.push_back(fmt::format("{}-{}.png", stem, number));
    images::save_png(quality.pictures.back(), images::to_image(result.pictures[0] * 2 - 1));
    pictures.push_back(images::load_image(quality.pictures.back()));
  }
  const auto found = images::fidelity(emoji_, settings_.emoji, pictures, settings_.prompts());
  quality.cosine = found.cosine;
  quality.median_rank = found.median_rank;
  quality.followed = found.followed;
  quality.asked = found.asked;
}

std::vector<Split> Experiment::split(const Variant& variant, double rate, uint64_t seed,
                                     const std::vector<int64_t>& ranks) {
  const auto stem = path(variant, rate, seed);
  auto settings = settings_.to_string();
  for (const auto rank : ranks) settings += fmt::format(", rank {}", rank);
  if (auto done = load_splits(stem + ".splits.json", settings)) return *done;
  train(variant, rate, seed);
  const auto trained = lightlora::read_state(stem + ".safetensors");
  std::vector<Split> splits;
  for (const auto rank : ranks) {
    Split split;
    split.rank = rank;
    split.energy = energy_kept(trained, rank);
    const auto name = fmt::format("{}.split{}", stem, rank);
    const auto state = lightlora::cut(trained, lightlora::Keep::rank(rank));
    split.exported_bytes = save_exported(name + ".safetensors", state);
    split.quality = measure(state, name);
    splits.push_back(std::move(split));
  }
  save_splits(stem + ".splits.json", splits, settings);
  return splits;
}

}  // namespace study
