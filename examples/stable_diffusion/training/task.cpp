// SPDX-License-Identifier: Apache-2.0
#include "training/task.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <utility>

#include "pipeline/device.h"
#include "support/cli/config.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"
#include "support/cuda/cards.h"
#include "support/distributed/fingerprint.h"
#include "support/images/load.h"
#include "training/phases.h"

namespace training {

namespace {

DatasetOptions dataset_options(const DataOptions& data, int64_t resolution) {
  DatasetOptions options;
  options.resolution = resolution;
  options.center_crop = data.center_crop;
  options.random_flip = data.random_flip;
  options.filter = data.image_interpolation_mode;
  options.alpha_mask = data.alpha_mask || (data.masked_loss && data.conditioning_data_dir.empty());
  if (!data.enable_bucket) return options;
  BucketOptions buckets = BucketOptions::of(resolution);
  buckets.min_size = data.min_bucket_reso.value_or(buckets.min_size);
  buckets.max_size = data.max_bucket_reso.value_or(buckets.max_size);
  buckets.step = data.bucket_reso_steps.value_or(buckets.step);
  options.buckets = buckets;
  return options;
}

// Follows from the first values of every weight: fine-tuning moves all.
void add_weights(distributed::Fingerprint& print, const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    print.add(item.key());
    const auto values =
        item.value().detach().flatten().slice(0, 0, 8).to(torch::kCPU, torch::kFloat);
    const auto bytes = values.contiguous();
    print.add(bytes.const_data_ptr<float>(), static_cast<size_t>(bytes.numel()) * sizeof(float));
  }
}

// Of the UNet and the text encoders.
std::string model_fingerprint(const sd::StableDiffusion& pipeline) {
  distributed::Fingerprint print;
  add_weights(print, *pipeline.unet());
  for (size_t i = 0; i < pipeline.text_encoders(); ++i)
    add_weights(print, *pipeline.text_encoder(i));
  return print.hexadecimal();
}

std::string autoencoder_fingerprint(const sd::StableDiffusion& pipeline) {
  distributed::Fingerprint print;
  add_weights(print, *pipeline.vae());
  return print.hexadecimal();
}

// Transparency that plays no part, and masks that there are none of.
void print_transparency(const std::string& name, const std::vector<PictureFile>& files,
                        bool alpha_mask) {
  int64_t dropped = 0, masks = 0, asked = 0;
  for (const auto& file : files) {
    const bool transparent = images::has_transparency(file.path);
    const bool used = file.mask.empty() && file.alpha_mask.value_or(alpha_mask);
    asked += used ? 1 : 0;
    masks += used && transparent ? 1 : 0;
    dropped += !used && transparent ? 1 : 0;
  }
  if (dropped > 0) {
    fmt::print(
        "notice: {} of {} {} have transparency, which is dropped; hint: --alpha_mask trains "
        "on what is opaque\n",
        dropped, files.size(), name);
  }
  // Class pictures have none as a rule.
  if (asked > 0 && masks == 0 && name == "pictures") {
    fmt::print(
        "notice: none of the {} pictures has transparency: --masked_loss and --alpha_mask change "
        "nothing; hint: --conditioning_data_dir names a folder of masks\n",
        asked);
  }
}

// What large photos cost, once: afterwards they are in memory, as large as they are trained on.
void print_reading(const std::string& name, const ImageDataset& dataset,
                   std::chrono::duration<double> time) {
  constexpr double kLong = 5;  // seconds
  if (time.count() < kLong) return;
  const auto area = [&](int64_t i) {
    return dataset.original_size(i).width * dataset.original_size(i).height;
  };
  int64_t largest = 0;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    if (area(i) > area(largest)) largest = i;
  }
  const Size size = dataset.original_size(largest);
  fmt::print(
      "notice: reading {} {} took {}, once; the largest is '{}' with {}x{} pixels; hint: smaller "
      "copies of large photos start faster\n",
      dataset.size(), name, cli::format_duration(time.count()),
      cli::printable(dataset.file(largest).path), size.width, size.height);
}

// What the run that this one goes on with had for a flag, by its config.toml; none for a new run.
std::optional<std::string> setting_before(const TrainingOptions& options,
                                          const distributed::Group& group,
                                          const std::string& name) {
  if (options.run.resume_from_checkpoint.empty() && group.restarts() == 0) return std::nullopt;
  const auto path = (std::filesystem::path(options.run.output_dir) / "config.toml").string();
  if (!std::filesystem::exists(path)) return std::nullopt;
  for (const auto& setting : cli::read_config(path)) {
    if (setting.name == name) return setting.text();
  }
  return std::nullopt;
}

}  // namespace

void settle_seed(TrainingOptions& options, const distributed::Group& group) {
  auto& machine = options.machine;
  if (!machine.new_seed) return;
  std::random_device device;
  const auto before = setting_before(options, group, "seed");
  const uint64_t seed = before ? std::strtoull(before->c_str(), nullptr, 10) : device();
  machine.seed = static_cast<uint64_t>(group.from_main(static_cast<int64_t>(seed)));
  machine.new_seed = false;
  fmt::print("seed: {}\n", machine.seed);
}

void settle_precision(TrainingOptions& options, const distributed::Group& group) {
  auto& precision = options.machine.mixed_precision;
  if (precision) return;
  const auto before = setting_before(options, group, "mixed_precision");
  for (const auto& [word, dtype] : precision_choices()) {
    if (before == word) precision = dtype;
  }
  if (!precision) precision = cuda::fast_precision(sd::pick_device(options.machine.device));
  precision = static_cast<c10::ScalarType>(group.from_main(static_cast<int64_t>(*precision)));
}

TrainerOptions trainer_options(const TrainingOptions& o, const distributed::Group& group) {
  TrainerOptions options;
  options.gradient_accumulation_steps = o.optimization.gradient_accumulation_steps;
  options.seed = o.machine.seed;
  options.max_grad_norm = o.optimization.max_grad_norm;
  options.scale_loss = o.machine.precision() == c10::kHalf;
  options.gradient_checkpointing = o.optimization.gradient_checkpointing;
  options.batch_invariant = o.optimization.batch_invariant;
  options.optimizer = o.optimization.optimizer;
  if (o.optimization.use_ema) options.ema_decay = o.optimization.ema_decay;
  options.group = group;
  return options;
}

PromptStates trained_prompts(sd::StableDiffusion& pipeline, int64_t clip_skip, int64_t chunks) {
  return {[&pipeline, chunks](const std::vector<std::string>& texts) {
            return pipeline.token_ids(texts, chunks);
          },
          [&pipeline, clip_skip, chunks](const std::vector<torch::Tensor>& ids) {
            return pipeline.encode_ids(ids, clip_skip, chunks);
          }};
}

RunFacts PictureTask::facts(const std::vector<PictureFile>& files,
                            const std::vector<PictureFile>& held_out,
                            const distributed::Group& group,
                            const std::vector<PictureFile>& class_files) const {
  RunFacts facts;
  facts.resolution = pipeline_->default_size()[0];
  int64_t class_samples = 0;
  for (const auto& file : files) facts.samples_per_epoch += file.repeats;
  for (const auto& file : class_files) class_samples += file.repeats;
  facts.samples_per_epoch = std::max(facts.samples_per_epoch, class_samples);
  facts.held_out = !held_out.empty();
  facts.processes = group.size();
  return facts;
}

void PictureTask::load_pipeline(const TrainingOptions& options) {
  begin_phase("models");
  pipeline_.emplace(options.model.path, options.pipeline_options(options.machine.precision()));
  const sd::NoiseSchedule schedule(pipeline_->scheduler_config());
  if (schedule.prediction_type() == sd::PredictionType::epsilon &&
      schedule.alphas_cumprod()[-1].item<double>() == 0) {
    fmt::print(
        "notice: the last timestep is pure noise (rescale_betas_zero_snr), of which a model that "
        "predicts noise learns nothing; hint: --prediction_type v_prediction, if that is what it "
        "predicts\n");
  }
  fingerprints_["base model"] = model_fingerprint(*pipeline_);
  fingerprints_["autoencoder"] = autoencoder_fingerprint(*pipeline_);
}

SampleSource PictureTask::make_source(const std::string& name, std::vector<PictureFile> files,
                                      const TrainingOptions& options,
                                      const SampleOptions& samples) {
  const auto how = dataset_options(options.data, plan().resolution);
  print_transparency(name, files, how.alpha_mask);
  const auto start = std::chrono::steady_clock::now();
  ImageDataset dataset(std::move(files), how);
  print_reading(name, dataset, std::chrono::steady_clock::now() - start);
  fingerprints_[name] = dataset.fingerprint();
  const bool one_by_one = options.optimization.batch_invariant || options.machine.like_a_cpu;
  return {
      LatentSource(std::move(dataset), pipeline_->vae(), options.data.cache_latents,
                   options.machine.seed, one_by_one ? 1 : options.optimization.train_batch_size),
      samples};
}

void PictureTask::validate(RunLog& log) {
  if (validation_loss_) {
    log.add(trainer_->steps_done(), validation_loss_->measure(*trainer_));
  }
  if (validation_pictures_) validation_pictures_->draw(*pipeline_, *trainer_, log);
}

void PictureTask::finish() {
  if (validation_pictures_) validation_pictures_->write_sheet(trainer_->steps_done());
}

}  // namespace training
