// SPDX-License-Identifier: Apache-2.0
#include "training/inversion.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "pipeline/embeddings.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cuda/graph.h"
#include "training/model_card.h"

namespace training {

namespace {

// What a picture of the word alone is called.
std::string prompt_of(const InversionOptions& options) {
  return (options.learnable_property == Property::style ? "a painting in the style of "
                                                        : "a photo of ") +
         options.placeholder_token;
}

std::vector<PictureFile> inversion_pictures(const InversionOptions& options) {
  auto pictures = read_pictures(options.train_data_dir);
  const auto captioned = std::count_if(pictures.begin(), pictures.end(),
                                       [](const auto& picture) { return picture.caption; });
  if (captioned > 0) {
    fmt::print(
        "notice: '{}': the captions of {} of {} pictures are not used: sentences around the "
        "word stand in for them\n",
        options.train_data_dir, captioned, pictures.size());
  }
  for (auto& picture : pictures) {
    picture.caption.reset();  // templates around the word stand in for captions
    picture.repeats *= options.repeats;
  }
  return pictures;
}

}  // namespace

Inversion::Inversion(const InversionOptions& options, const distributed::Group& group)
    : options_(options) {
  auto files = inversion_pictures(options_);
  if (options_.data.masked_loss && !options_.data.conditioning_data_dir.empty()) {
    print_notices(add_masks(files, options_.train_data_dir, options_.data.conditioning_data_dir));
  }
  auto held_out = split_off(files, options_.data.validation_split, options_.machine.seed);
  load_pipeline(options_);
  plan_.emplace(make_plan(options_, facts(files, held_out, group)));
  learn_word();
  auto source = make_source("pictures", std::move(files), options_, samples());
  const DiffusionLoss loss(sd::NoiseSchedule(pipeline_->scheduler_config()),
                           options_.optimization.loss);
  if (!held_out.empty()) {
    auto held = make_source("validation pictures", std::move(held_out), options_, samples());
    validation_loss_.emplace(held.latents(), "a photo of " + options_.placeholder_token, loss,
                             options_.machine.seed);
  }
  if (options_.data.cache_latents) source.latents().encode_all();
  PromptStates prompts = trained_prompts(*pipeline_, /*clip_skip=*/0);
  auto trainer = trainer_options(options_, group);
  trainer.cuda_graph = cuda::use_graph(options_.cuda_graph, pipeline_->options().device());
  trainer.require_cuda_graph = options_.cuda_graph.value_or(false);
  trainer_ =
      std::make_unique<Trainer>(TrainerParts{pipeline_->unet(),
                                             loss,
                                             std::move(prompts),
                                             std::move(source),
                                             std::nullopt,
                                             {},
                                             {{"embedding", 1, vectors_}}},
                                schedule_of(options_.optimization, *plan_), std::move(trainer));
  if (options_.run.draws()) {
    validation_pictures_.emplace(validation_pictures(options_));
  }
}

SampleOptions Inversion::samples() const {
  SampleOptions samples;
  samples.batch_size = options_.optimization.train_batch_size;
  samples.seed = options_.machine.seed;
  samples.captions = caption_templates(options_.learnable_property, options_.placeholder_token);
  samples.caption_dropout_rate = options_.data.caption_dropout_rate;
  return samples;
}

// The initializer's vector, as often as the word has some.
torch::Tensor Inversion::initial_vectors(size_t encoder, const std::vector<int64_t>& layers) const {
  const auto initial = pipeline_->tokenizer(encoder).tokenize(options_.initializer_token);
  TORCH_CHECK_VALUE(initial.size() == 1, "--initializer_token: expected a word of one token, got '",
                    options_.initializer_token, "' with ", initial.size(),
                    "; hint: a short common word, see text_to_image --print_tokens");
  const auto table =
      pipeline_->text_encoder(encoder)->text_model->embeddings->token_embedding->weight;
  const auto row = table[initial[0]].to(torch::kFloat);
  auto shape = layers;
  shape.insert(shape.end(), {options_.num_vectors, row.size(0)});
  return row.expand(shape).clone().set_requires_grad(true);  // on the model's device
}

// Gives the word tokens of its own, whose vectors all begin as the initializer's.
void Inversion::learn_word() {
  lightlora::LearnedEmbedding embedding{options_.placeholder_token, {}, {}};
  std::vector<int64_t> layers;
  TORCH_CHECK_VALUE(!options_.layerwise || !pipeline_->is_sdxl(),
                    "'--layerwise': cannot be combined with SDXL: its UNet reads a pooled text ",
                    "that belongs to no layer");
  const int64_t room = pipeline_->tokenizer().model_max_length() - 2;
  TORCH_CHECK_VALUE(options_.num_vectors <= room, "--num_vectors: expected at most ", room,
                    ", which the text encoder reads, got ", options_.num_vectors);
  if (options_.layerwise) {
    embedding.layers = pipeline_->unet()->attention_names();
    layers = {static_cast<int64_t>(embedding.layers.size())};
  }
  for (size_t i = 0; i < pipeline_->text_encoders(); ++i) {
    vectors_.push_back(initial_vectors(i, layers));
  }
  embedding.vectors = vectors_[0];
  if (vectors_.size() > 1) embedding.vectors_2 = vectors_[1];
  sd::add_embedding(*pipeline_, embedding);
}

lightlora::LearnedEmbedding Inversion::embedding() const {
  const auto copy = [](const torch::Tensor& t) { return t.detach().to(torch::kCPU).clone(); };
  lightlora::LearnedEmbedding result{options_.placeholder_token, copy(vectors_[0]), {}};
  if (options_.layerwise) result.layers = pipeline_->unet()->attention_names();
  if (vectors_.size() > 1) result.vectors_2 = copy(vectors_[1]);
  return result;
}

void Inversion::save(const std::string& folder) const {
  lightlora::save_embedding((std::filesystem::path(folder) / kFile).string(), embedding());
}

void Inversion::load(const std::string& folder) {
  const auto path = (std::filesystem::path(folder) / kFile).string();
  const auto all = lightlora::load_embeddings(path);
  const bool two = vectors_.size() > 1;
  const bool fits = all.size() == 1 && all[0].vectors.sizes() == vectors_[0].sizes() &&
                    all[0].vectors_2.defined() == two &&
                    (!two || all[0].vectors_2.sizes() == vectors_[1].sizes());
  TORCH_CHECK(
      fits, "'", path, "': expected one word with vectors ", vectors_[0].sizes(),
      ", got another shape; hint: ", "the checkpoint is of a run with another --num_vectors");
  const torch::NoGradGuard no_grad;
  vectors_[0].copy_(all[0].vectors);
  if (two) vectors_[1].copy_(all[0].vectors_2);
}

void Inversion::after_step(int64_t step) {
  if (step % options_.save_steps != 0) return;
  const auto averaged = engine().averaged();
  const auto name = fmt::format("learned_embeds-steps-{}.safetensors", step);
  lightlora::save_embedding((std::filesystem::path(options_.run.output_dir) / name).string(),
                            embedding());
}

void Inversion::finish() {
  PictureTask::finish();
  const std::filesystem::path folder = options_.run.output_dir;
  ModelCard card;
  card.kind = ModelCard::Kind::word;
  card.title = "The word " + options_.placeholder_token;
  card.base_model = options_.model.path;
  card.command = draw_command(options_, kFile);
  card.prompt = prompt_of(options_);
  card.words = {{kFile, options_.placeholder_token, options_.layerwise}};
  card.is_sdxl = pipeline_->is_sdxl();
  card.picture_prompt = options_.run.validation_prompt;
  if (std::filesystem::exists(folder / "contact_sheet.png")) card.pictures = {"contact_sheet.png"};
  card.settings = unusual_settings(plan_->settings, settings_of(InversionOptions()));
  write_model_card(folder.string(), card);
  if (!options_.save_as_full_pipeline) return;
  save_full_pipeline(*pipeline_, embedding(), options_.run.output_dir);
  fmt::print("model with it:  {}\n", options_.run.output_dir);
}

std::string draw_command(const InversionOptions& options, const std::string& file) {
  // Captions are trained as they stand.
  return fmt::format(
      "text_to_image {} --learned_embeds {} --prompt_syntax plain --prompt {} --output picture.png",
      sd::model_arguments(options.model), cli::format_word(file),
      cli::format_word(prompt_of(options)));
}

Outcome train_inversion(const InversionOptions& given, const distributed::Group& group) {
  return train_as<Inversion>(given, group);
}

}  // namespace training
