// SPDX-License-Identifier: Apache-2.0
#include "training/dreambooth.h"

#include <lightlora/combine.h>
#include <lightlora/files.h>

#include <filesystem>
#include <iostream>
#include <utility>

#include "pipeline/embeddings.h"
#include "training/class_pictures.h"

namespace training {

namespace {

std::string in_folder(const std::string& folder, const char* name) {
  return (std::filesystem::path(folder) / name).string();
}

}  // namespace

DreamBooth::DreamBooth(Flags& flags, const distributed::Group& group)
    : flags_(flags), group_(group), start_(flags.adapter.read_start()) {
  auto files = read_with_notices(flags.instance_data_dir);
  auto held_out = split_off(files, flags.data.validation_split, flags.seed);
  if (flags.with_prior_preservation) prepare_class_pictures();
  pipeline_.emplace(flags.model, flags.pipeline_options(flags.weight_dtype()));
  flags.data.resolution = flags.data.resolution.value_or(pipeline_->default_size()[0]);
  learn_words();
  auto instance = make_source(std::move(files), flags.instance_samples());
  std::optional<SampleSource> prior;
  if (flags.with_prior_preservation) {
    prior = make_source(read_with_notices(flags.class_data_dir), flags.class_samples());
  }
  samples_per_epoch_ = instance.samples_per_epoch();
  auto& optimization = flags.optimization;
  optimization.processes = group.size();
  optimization.resolve(samples_per_epoch_, flags.adapter.usual_rate());
  validation_interval_ = flags.run.validation_interval(
      optimization.steps_per_epoch(samples_per_epoch_), !held_out.empty());
  adapt();

  DiffusionLoss loss(sd::NoiseSchedule(pipeline_->scheduler_config()), optimization.loss_options());
  auto captions = instance.captions();
  const auto add_captions = [&](const std::vector<std::string>& more) {
    captions.insert(captions.end(), more.begin(), more.end());
  };
  if (prior) add_captions(prior->captions());
  if (validates()) {
    std::optional<SampleSource> held;
    if (!held_out.empty()) held = make_source(std::move(held_out), flags.instance_samples());
    validation_loss_.emplace((held ? *held : instance).latents(), flags.instance_prompt, loss,
                             flags.seed);
    add_captions(validation_loss_->captions());
  }
  PromptStates prompts = encode_prompts(captions);
  if (flags.data.cache_latents) {
    instance.latents().encode_all();
    if (prior) prior->latents().encode_all();
    if (flags.run.validation_prompt.empty()) pipeline_->release_vae();
  }
  auto options = flags.trainer_options();
  options.group = group;
  trainer_ = std::make_unique<Trainer>(
      TrainerParts{pipeline_->unet(), std::move(loss), std::move(prompts), std::move(instance),
                   std::move(prior), adapters_->all(),
                   adapters_->groups(*optimization.learning_rate)},
      optimization.schedule(), options);
}

// Those that are missing are drawn with a pipeline of its own, which is gone afterwards.
void DreamBooth::prepare_class_pictures() const {
  const auto options = flags_.class_pictures();
  if (group_.from_main(missing_class_pictures(options)) == 0) return;
  sd::StableDiffusion pipeline(flags_.model, flags_.pipeline_options(flags_.prior_dtype()));
  TORCH_CHECK(draw_class_pictures(pipeline, options, group_),
              "stopped by request while drawing class pictures; hint: the next run goes on there");
  TORCH_CHECK(missing_class_pictures(options) == 0, "'", options.folder, "': expected ", options.count,
              " class pictures, of which other processes drew some, got fewer; hint: --class_data_dir ",
              "should be one folder that all machines share");
}

void DreamBooth::learn_words() {
  for (const auto& text : flags_.learned_embeds) {
    for (const auto& word : sd::read_embeddings(text)) {
      sd::add_embedding(*pipeline_, word);
      std::cout << "learned word " << word.token << ": " << word.vectors.size(-2) << " vectors"
                << (word.layers.empty() ? "" : " for each of the UNet's transformers") << "\n";
      if (flags_.instance_prompt.find(word.token) == std::string::npos) {
        std::cout << "notice: --instance_prompt does not use " << word.token << "\n";
      }
    }
  }
}

void DreamBooth::adapt() {
  torch::nn::Module* text_encoder =
      flags_.adapter.train_text_encoder ? pipeline_->text_encoder().get() : nullptr;
  adapters_.emplace(flags_.adapter, *pipeline_->unet(), text_encoder, flags_.seed, start_);
  if (flags_.adapter.train_text_encoder) pipeline_->text_encoder()->train();
  for (const auto& model : adapters_->all()) std::cout << model->report().to_string() << "\n";
  std::cout << adapters_->unet()->adapters()[0]->description() << "\n";
  if (flags_.adapter.init == "both_zero") {
    std::cout << "warning: --init both_zero is a saddle: every gradient is exactly zero there, so "
                 "nothing will be learned\n";
  }
}

SampleSource DreamBooth::make_source(std::vector<PictureFile> files, const SampleOptions& options) {
  ImageDataset dataset(std::move(files), flags_.data.dataset_options(*flags_.data.resolution));
  return {LatentSource(std::move(dataset), pipeline_->vae(), flags_.data.cache_latents, flags_.seed),
          options};
}

// A text encoder that nothing needs any more is dropped.
PromptStates DreamBooth::encode_prompts(const std::vector<std::string>& captions) {
  for (const auto& caption : captions) {
    const auto warning = pipeline_->tokenizer().truncation_warning(caption);
    if (!warning.empty()) std::cout << "notice: " << warning << "\n";
  }
  PromptStates prompts(
      [this](const std::vector<std::string>& texts) {
        return pipeline_->encode_prompt(texts, flags_.clip_skip);
      },
      flags_.adapter.train_text_encoder);
  prompts.prepare(captions);
  if (prompts.trains()) return prompts;
  prompts.release_encoder();
  if (flags_.run.validation_prompt.empty()) pipeline_->release_text_encoder();
  return prompts;
}

RunParts DreamBooth::run_parts(const std::string& settings) {
  RunParts parts;
  parts.flags = flags_.run;
  parts.steps = *flags_.optimization.max_train_steps;
  parts.validation_interval = validation_interval_;
  parts.settings = settings;
  parts.save_weights = [this](const std::string& folder) { save_weights(folder); };
  parts.load_weights = [this](const std::string& folder) { load_weights(folder); };
  parts.validation_loss = validation_loss_;
  if (!flags_.run.validation_prompt.empty()) {
    parts.validation_pictures.emplace(validation_pictures(flags_.run, flags_.seed));
  }
  parts.pipeline = &*pipeline_;
  return parts;
}

void DreamBooth::save_weights(const std::string& folder) const {
  const lightlora::Components components = adapters_->state();
  lightlora::Components exported = components;
  if (flags_.adapter.split_rank) {
    for (auto& item : exported) {
      item.second = lightlora::cut(item.second, lightlora::Keep::rank(*flags_.adapter.split_rank));
    }
  }
  lightlora::save(
      components, in_folder(folder, kNativeFile),
      lightlora::SaveOptions().metadata({{"instance_prompt", flags_.instance_prompt}}));
  lightlora::save(exported, in_folder(folder, kDiffusersFile), lightlora::Format::diffusers);
}

void DreamBooth::load_weights(const std::string& folder) {
  adapters_->load_state(lightlora::read_adapters(in_folder(folder, kNativeFile)).components);
}

}  // namespace training
