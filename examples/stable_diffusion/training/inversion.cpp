// SPDX-License-Identifier: Apache-2.0
#include "training/inversion.h"

#include <filesystem>
#include <utility>

#include "pipeline/embeddings.h"
#include "training/templates.h"
#include "training/word_folder.h"

namespace training {

namespace {

namespace fs = std::filesystem;

std::vector<PictureFile> inversion_pictures(const InversionFlags& flags) {
  auto pictures = read_with_notices(flags.train_data_dir);
  for (auto& picture : pictures) {
    picture.caption.reset();  // templates around the word stand in for captions
    picture.repeats *= flags.repeats;
  }
  return pictures;
}

}  // namespace

InversionFlags::InversionFlags() {
  run.output_dir = "text-inversion-model";
  data.random_flip = true;
  data.image_interpolation_mode = "bicubic";
  optimization.train_batch_size = 16;
  optimization.num_train_epochs = 100;
  optimization.max_train_steps = 5000;
  optimization.learning_rate = 1e-4;
}

void InversionFlags::check() const {
  data.check();
  if (save_as_full_pipeline) check_word_folder(model, layerwise, run.output_dir);
}

void add_inversion_flags(cli::App& app, InversionFlags& f) {
  app.group("Required");
  sd::add_model_flag(app, f);
  app.add_option("--train_data_dir", f.train_data_dir, "Folder with pictures of the thing or style")
      ->required();
  app.add_option("--placeholder_token", f.placeholder_token,
                 "The new word, such as <my-cat>; prompts use it afterwards")
      ->required();
  app.add_option("--initializer_token", f.initializer_token,
                 "A word of one token to start from, such as cat")
      ->required();
  app.group("Word");
  app.add_option("--learnable_property", f.learnable_property, "What the pictures have in common")
      ->check(cli::one_of({"object", "style"}));
  app.add_option("--num_vectors", f.num_vectors, "How many tokens the word stands for")
      ->check(cli::at_least(1));
  app.add_flag("--layerwise", f.layerwise,
               "Vectors of their own for each cross attention of the UNet (XTI, P+): 16 times as "
               "many for Stable Diffusion 1.x");
  app.add_option("--repeats", f.repeats, "How often each picture comes in one epoch")
      ->check(cli::at_least(1));
  app.add_option("--save_steps", f.save_steps,
                 "Also write learned_embeds-steps-N.safetensors after so many steps")
      ->check(cli::at_least(1));
  app.group("Files");
  app.add_config_flag();
  app.add_flag("--save_as_full_pipeline", f.save_as_full_pipeline,
               "Also write the whole model, in diffusers layout, with the word in its tokenizer and "
               "text encoder");
  sd::add_single_file_flags(app, f);
  add_run_flags(app, f.run);
  add_data_flags(app, f.data);
  add_optimization_flags(app, f.optimization);
  add_running_flags(app, f);
  distributed::add_group_flags(app, f.group);
  app.absent("--no_safe_serialization",
             "files are safetensors, which diffusers, A1111 and ComfyUI read, and never pickles");
  app.absent("--variant", "the half-precision files of a folder are used if it has no others");
}

Inversion::Inversion(InversionFlags& flags, const distributed::Group& group) : flags_(flags) {
  auto files = inversion_pictures(flags);
  auto held_out = split_off(files, flags.data.validation_split, flags.seed);
  pipeline_.emplace(flags.model, flags.pipeline_options(flags.weight_dtype()));
  flags.data.resolution = flags.data.resolution.value_or(pipeline_->default_size()[0]);
  learn_word();
  auto source = make_source(std::move(files));
  samples_per_epoch_ = source.samples_per_epoch();
  flags.optimization.processes = group.size();
  flags.optimization.resolve(samples_per_epoch_, *flags.optimization.learning_rate);
  DiffusionLoss loss(sd::NoiseSchedule(pipeline_->scheduler_config()),
                     flags.optimization.loss_options());
  if (!held_out.empty()) {
    auto held = make_source(std::move(held_out));
    validation_loss_.emplace(held.latents(), "a photo of " + flags.placeholder_token, loss,
                             flags.seed);
  }
  if (flags.data.cache_latents) source.latents().encode_all();
  PromptStates prompts(
      [this](const std::vector<std::string>& texts) { return pipeline_->encode_prompt(texts); },
      /*trains=*/true);
  auto options = flags.trainer_options();
  options.group = group;
  trainer_ = std::make_unique<Trainer>(
      TrainerParts{pipeline_->unet(), std::move(loss), std::move(prompts), std::move(source),
                   std::nullopt, {}, {{"embedding", 1, {vectors_}}}},
      flags.optimization.schedule(), options);
}

SampleSource Inversion::make_source(std::vector<PictureFile> files) {
  SampleOptions options;
  options.batch_size = flags_.optimization.train_batch_size;
  options.seed = flags_.seed;
  options.captions = caption_templates(flags_.learnable_property, flags_.placeholder_token);
  options.caption_dropout_rate = flags_.data.caption_dropout_rate;
  ImageDataset dataset(std::move(files), flags_.data.dataset_options(*flags_.data.resolution));
  return {LatentSource(std::move(dataset), pipeline_->vae(), flags_.data.cache_latents, flags_.seed),
          options};
}

// Gives the word tokens of its own, whose vectors all begin as the initialiser's.
void Inversion::learn_word() {
  const auto initial = pipeline_->tokenizer().tokenize(flags_.initializer_token);
  TORCH_CHECK_VALUE(initial.size() == 1, "--initializer_token: expected a word of one token, got '",
                    flags_.initializer_token, "' with ", initial.size(),
                    "; hint: a short common word, see text_to_image --print_tokens");
  const auto table = pipeline_->text_encoder()->text_model->embeddings->token_embedding->weight;
  const auto row = table[initial[0]].to(torch::kFloat);
  lightlora::LearnedEmbedding embedding{flags_.placeholder_token, {}, {}};
  std::vector<int64_t> shape{flags_.num_vectors, row.size(0)};
  if (flags_.layerwise) {
    embedding.layers = pipeline_->unet()->attention_names();
    shape.insert(shape.begin(), static_cast<int64_t>(embedding.layers.size()));
  }
  vectors_ = row.expand(shape).clone().set_requires_grad(true);  // on the model's device
  embedding.vectors = vectors_;
  sd::add_embedding(*pipeline_, embedding);
}

lightlora::LearnedEmbedding Inversion::embedding() const {
  lightlora::LearnedEmbedding result{flags_.placeholder_token,
                                     vectors_.detach().to(torch::kCPU).clone(), {}};
  if (flags_.layerwise) result.layers = pipeline_->unet()->attention_names();
  return result;
}

void Inversion::save(const std::string& path) const {
  lightlora::save_embedding(path, embedding());
}

void Inversion::load(const std::string& path) {
  const auto all = lightlora::load_embeddings(path);
  TORCH_CHECK(all.size() == 1 && all[0].vectors.sizes() == vectors_.sizes(), "'", path,
              "': expected one word with vectors ", vectors_.sizes(), ", got another shape; hint: ",
              "the checkpoint is of a run with another --num_vectors");
  const torch::NoGradGuard no_grad;
  vectors_.copy_(all[0].vectors);
}

RunParts Inversion::run_parts(const std::string& settings) {
  RunParts parts;
  parts.flags = flags_.run;
  parts.steps = *flags_.optimization.max_train_steps;
  parts.settings = settings;
  const auto in = [](const std::string& folder, const std::string& name) {
    return (fs::path(folder) / name).string();
  };
  parts.save_weights = [=](const std::string& folder) { save(in(folder, kFile)); };
  parts.load_weights = [=](const std::string& folder) { load(in(folder, kFile)); };
  parts.after_step = [=](int64_t step) {
    if (step % flags_.save_steps != 0) return;
    const std::string name = "learned_embeds-steps-" + std::to_string(step) + ".safetensors";
    save(in(flags_.run.output_dir, name));
  };
  parts.validation_interval = flags_.run.validation_interval(
      flags_.optimization.steps_per_epoch(samples_per_epoch_), validation_loss_.has_value());
  parts.validation_loss = validation_loss_;
  if (!flags_.run.validation_prompt.empty()) {
    parts.validation_pictures.emplace(validation_pictures(flags_.run, flags_.seed));
  }
  parts.pipeline = &*pipeline_;
  return parts;
}

}  // namespace training
