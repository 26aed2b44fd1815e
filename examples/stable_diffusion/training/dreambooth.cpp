// SPDX-License-Identifier: Apache-2.0
#include "training/dreambooth.h"

#include <lightlora/combine.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>

#include <filesystem>
#include <set>
#include <utility>

#include "pipeline/embeddings.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"
#include "support/distributed/fingerprint.h"
#include "support/files/limits.h"
#include "training/adapters.h"
#include "training/class_pictures.h"
#include "training/memory.h"
#include "training/phases.h"

namespace training {

namespace {

namespace fs = std::filesystem;

SampleOptions instance_samples(const DreamBoothOptions& o) {
  SampleOptions samples;
  samples.batch_size = o.optimization.train_batch_size;
  samples.seed = o.machine.seed;
  samples.prompt = o.instance_prompt;
  samples.caption_dropout_rate = o.data.caption_dropout_rate;
  return samples;
}

SampleOptions class_samples(const DreamBoothOptions& o) {
  SampleOptions samples = instance_samples(o);
  samples.prompt = o.prior.class_prompt;
  samples.order = Stream::class_order;
  samples.sample = Stream::class_sample;
  return samples;
}

TrainerOptions dreambooth_trainer(const DreamBoothOptions& o, const distributed::Group& group,
                                  c10::Device device, int64_t total_steps) {
  TrainerOptions options = trainer_options(o, group);
  options.total_steps = total_steps;
  options.prior_loss_weight = o.prior.prior_loss_weight;
  options.cuda_graph = cuda::use_graph(o.cuda_graph, device);
  options.require_cuda_graph = o.cuda_graph.value_or(false);
  return options;
}

// On a GPU the autoencoder then takes about as long as the rest of a step, on a processor a fifth.
void print_encoded_anew(const ImageDataset& pictures) {
  int64_t anew = 0;
  for (int64_t i = 0; i < pictures.size(); ++i) anew += pictures.is_fixed(i) ? 0 : 1;
  if (anew == 0) return;
  fmt::print(
      "notice: {} of {} pictures pass the autoencoder in each step that shows them, cut anew; "
      "hint: --cache_latents cuts and encodes once\n",
      anew, pictures.size());
}

// The file of "FILE" or "FILE:TOKEN".
std::string file_of(const std::string& embedding) {
  return sd::limits::exists(embedding) ? embedding : embedding.substr(0, embedding.rfind(':'));
}

void add_word(distributed::Fingerprint& print, const lightlora::LearnedEmbedding& word) {
  print.add(word.token);
  for (const auto& vectors : {word.vectors, word.vectors_2}) {
    if (!vectors.defined()) continue;
    const auto values = vectors.detach().to(torch::kCPU, torch::kFloat).contiguous();
    print.add(values.const_data_ptr<float>(), static_cast<size_t>(values.nbytes()));
  }
}

void append(std::vector<std::string>& to, const std::vector<std::string>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// What of the captions is not read. One of them is enough to show.
void print_cut_off(const sd::Tokenizer& tokenizer, const std::vector<std::string>& captions,
                   int64_t chunks) {
  std::string first;
  int64_t count = 0;
  for (const auto& caption : std::set<std::string>(captions.begin(), captions.end())) {
    const auto warning = tokenizer.truncation_warning(caption, chunks);
    if (!warning.empty() && ++count == 1) first = warning;
  }
  if (count == 0) return;
  fmt::print("notice: {}{}{}\n", cli::message_line(first),
             count > 1 ? fmt::format("; {} captions are too long", count) : "",
             chunks < 3 ? "; hint: --max_token_length 225" : "");
}

DatasetConfig config_of(const DreamBoothOptions& options) {
  if (options.dataset_config.empty()) return {};
  return read_dataset_config(options.dataset_config, options.data,
                             options.optimization.train_batch_size);
}

DreamBoothOptions with_config(DreamBoothOptions options, const DatasetConfig& config) {
  if (config.pictures.empty()) return options;
  TORCH_CHECK_VALUE(
      !options.prior.with_prior_preservation || config.regularization.empty(),
      "'--with_prior_preservation': cannot be combined with a subset of is_reg: both ",
      "name the class pictures");
  options.data = config.data;
  options.optimization.train_batch_size = config.batch_size;
  return options;
}

}  // namespace

DreamBooth::DreamBooth(const DreamBoothOptions& options, const distributed::Group& group)
    : DreamBooth(options, config_of(options), group) {}

DreamBooth::DreamBooth(const DreamBoothOptions& options, DatasetConfig config,
                       const distributed::Group& group)
    : options_(with_config(options, config)),
      config_(std::move(config)),
      start_(read_start(options.adapter)) {
  auto files = read_instance_pictures();
  auto held_out = split_off(files, options_.data.validation_split, options_.machine.seed);
  std::vector<PictureFile> class_files = config_.regularization;
  if (options_.prior.with_prior_preservation) class_files = prepare_class_pictures(group);
  load_pipeline(options_);
  plan_.emplace(make_plan(options_, facts(files, held_out, group, class_files), start_));
  learn_words();
  make_trainer(std::move(files), std::move(held_out), std::move(class_files), group);
  if (options_.run.draws()) {
    auto pictures = validation_pictures(options_);
    pictures.clip_skip = options_.clip_skip;
    pictures.learned_embeds = options_.learned_embeds;
    validation_pictures_.emplace(std::move(pictures));
  }
}

std::vector<PictureFile> DreamBooth::read_instance_pictures() const {
  if (!config_.pictures.empty()) return config_.pictures;
  auto files = read_pictures(options_.instance_data_dir);
  if (options_.data.masked_loss && !options_.data.conditioning_data_dir.empty()) {
    print_notices(
        add_masks(files, options_.instance_data_dir, options_.data.conditioning_data_dir));
  }
  return files;
}

void DreamBooth::make_trainer(std::vector<PictureFile> files, std::vector<PictureFile> held_out,
                              std::vector<PictureFile> class_files,
                              const distributed::Group& group) {
  auto samples = instance_samples(options_);
  samples.samples_per_epoch = plan_->samples_per_epoch;
  auto instance = make_source("pictures", std::move(files), options_, samples);
  std::optional<SampleSource> prior;
  if (has_prior()) {
    samples = class_samples(options_);
    samples.samples_per_epoch = plan_->samples_per_epoch;
    prior = make_source("class pictures", std::move(class_files), options_, samples);
  }
  if (!options_.data.cache_latents) print_encoded_anew(instance.latents().dataset());
  adapt();
  const DiffusionLoss loss(sd::NoiseSchedule(pipeline_->scheduler_config()),
                           options_.optimization.loss);
  auto captions = instance.captions();
  if (prior) append(captions, prior->captions());
  if (plan_->validation_interval > 0) {
    std::optional<SampleSource> held;
    if (!held_out.empty()) {
      held = make_source("validation pictures", std::move(held_out), options_,
                         instance_samples(options_));
    }
    validation_loss_.emplace((held ? *held : instance).latents(), options_.instance_prompt, loss,
                             options_.machine.seed);
    append(captions, validation_loss_->captions());
  }
  const bool vary = instance.captions_vary() || (prior && prior->captions_vary());
  PromptStates prompts = encode_prompts(captions, vary);
  if (options_.data.cache_latents) {
    begin_phase("latents");
    instance.latents().encode_all();
    if (prior) prior->latents().encode_all();
    // Pictures are drawn with TAESD's decoder if there is one.
    if (!options_.run.draws() || !options_.model.load.taesd().empty()) pipeline_->release_vae();
  }
  release_cached_memory(pipeline_->options().device());
  trainer_ = std::make_unique<Trainer>(
      TrainerParts{pipeline_->unet(), loss, std::move(prompts), std::move(instance),
                   std::move(prior), adapters_.all(),
                   parameter_groups(adapters_, plan_->adapter, plan_->learning_rate)},
      schedule_of(options_.optimization, *plan_),
      dreambooth_trainer(options_, group, pipeline_->options().device(), plan_->steps));
}

// Those that are missing are drawn with a pipeline of its own, which is gone afterwards.
std::vector<PictureFile> DreamBooth::prepare_class_pictures(const distributed::Group& group) const {
  const auto& prior = options_.prior;
  ClassPictureOptions pictures;
  pictures.folder = prior.class_data_dir;
  pictures.prompt = prior.class_prompt;
  pictures.count = prior.num_class_images;
  pictures.batch_size = prior.sample_batch_size;
  pictures.seed = options_.machine.seed;
  pictures.clip_skip = options_.clip_skip;
  pictures.model = options_.model;
  pictures.model.load.taesd("");  // what is learned from is no preview
  if (group.from_main(missing_class_pictures(pictures)) == 0) return read_class_pictures(pictures);
  const auto precision = prior.prior_generation_precision.value_or(options_.machine.precision());
  sd::StableDiffusion pipeline(options_.model.path, options_.pipeline_options(precision).taesd(""));
  TORCH_CHECK(draw_class_pictures(pipeline, pictures, group),
              "stopped by request while drawing class pictures; hint: the next run goes on there");
  TORCH_CHECK(missing_class_pictures(pictures) == 0, "'", pictures.folder, "': expected ",
              pictures.count,
              " class pictures, of which other processes drew some, got fewer; hint: ",
              "--class_data_dir should be one folder that all machines share");
  return read_class_pictures(pictures);
}

void DreamBooth::learn_words() {
  distributed::Fingerprint print;
  for (const auto& text : options_.learned_embeds) {
    for (const auto& word : sd::read_embeddings(text)) {
      sd::add_embedding(*pipeline_, word);
      add_word(print, word);
      words_.push_back({file_of(text), word.token, !word.layers.empty()});
      fmt::print("learned word {}: {} vectors{}\n", word.token, word.vectors.size(-2),
                 word.layers.empty() ? "" : " for each of the UNet's transformers");
      if (options_.instance_prompt.find(word.token) == std::string::npos) {
        fmt::print("notice: --instance_prompt does not use {}\n", word.token);
      }
    }
  }
  if (!words_.empty()) fingerprints_["--learned_embeds file"] = print.hexadecimal();
  if (const auto& start = options_.adapter.init_from; !start.empty()) {
    fingerprints_["--init_from file"] = lightlora::file_hash(start);
  }
}

void DreamBooth::adapt() {
  begin_phase("adapters");
  const bool both = plan_->adapter.train_text_encoder;
  std::vector<torch::nn::Module*> text_encoders;
  for (size_t i = 0; both && i < pipeline_->text_encoders(); ++i) {
    text_encoders.push_back(pipeline_->text_encoder(i).get());
  }
  adapters_ = add_adapters(plan_->adapter, *pipeline_->unet(), text_encoders, options_.machine.seed,
                           start_);
  for (auto* text_encoder : text_encoders) text_encoder->train();
  for (const auto& model : adapters_.all()) fmt::print("{}\n", model->report().to_string());
  fmt::print("{}\n", adapters_.unet->adapters()[0]->description());
  if (!plan_->adapter.exports_factors() && !plan_->adapter.split_rank) {
    fmt::print(
        "notice: {} has no low-rank factors for {}, which is not written; hint: --split_rank 16 "
        "writes the best factors of that rank, {} holds what was learned in full\n",
        plan_->adapter.variant, kDiffusersFile, kNativeFile);
  }
  if (plan_->adapter.lora.init() == lightlora::Init::both_zero) {
    fmt::print(
        "warning: --init both_zero is a saddle: every gradient is exactly zero there, so nothing "
        "will be learned\n");
  }
}

// A text encoder that nothing needs any more is dropped.
PromptStates DreamBooth::encode_prompts(const std::vector<std::string>& captions, bool vary) {
  const int64_t chunks = options_.max_token_length / 75;
  print_cut_off(pipeline_->tokenizer(), captions, chunks);
  begin_phase("captions");
  if (options_.adapter.train_text_encoder)
    return trained_prompts(*pipeline_, options_.clip_skip, chunks);
  PromptStates prompts([this, chunks](const std::vector<std::string>& texts) {
    return pipeline_->encode_prompt(texts, options_.clip_skip, chunks);
  });
  prompts.prepare(captions);
  if (vary) return prompts;
  prompts.release_encoder();
  if (!options_.run.draws()) pipeline_->release_text_encoder();
  return prompts;
}

void DreamBooth::save(const std::string& folder) const {
  const auto& options = plan_->adapter;
  const auto own = adapters_.state();
  const lightlora::Components components = options.relax_rank ? joined(start_, own) : own;
  lightlora::Metadata metadata{{"instance_prompt", options_.instance_prompt}};
  if (options_.clip_skip > 0) metadata["clip_skip"] = fmt::to_string(options_.clip_skip);
  if (sd::NoiseSchedule(pipeline_->scheduler_config()).prediction_type() ==
      sd::PredictionType::v_prediction) {
    metadata["prediction_type"] = "v_prediction";
  }
  lightlora::save(components, (fs::path(folder) / kNativeFile).string(),
                  lightlora::SaveOptions().metadata(metadata));
  if (const auto factors = exported(components)) {
    lightlora::save(*factors, (fs::path(folder) / kDiffusersFile).string(),
                    lightlora::Format::diffusers);
  }
}

// What diffusers' files can hold: low-rank factors. Of variants without any the best ones of the
// rank that was asked for, which the layers' weights may be needed for.
std::optional<lightlora::Components> DreamBooth::exported(
    const lightlora::Components& trained) const {
  const auto& options = plan_->adapter;
  const auto rank = options.split_rank;
  auto result = lightlora::without_vectors(trained);
  if (options.exports_factors()) {
    for (auto& item : result) {
      if (rank) item.second = lightlora::cut(item.second, lightlora::Keep::rank(*rank));
    }
    return result;
  }
  if (!rank) return std::nullopt;
  for (const auto& [name, lora] : adapters_.by_component()) {
    if (lora) result[name] = lightlora::to_classic(lora, lightlora::Keep::rank(*rank));
  }
  return lightlora::without_vectors(std::move(result));
}

void DreamBooth::load(const std::string& folder) {
  const auto path = (fs::path(folder) / kNativeFile).string();
  const auto state = lightlora::read_adapters(path).components;
  try {
    adapters_.assign(plan_->adapter.relax_rank ? without(start_, state) : state);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
}

void DreamBooth::finish() {
  PictureTask::finish();
  const fs::path folder = options_.run.output_dir;
  ModelCard card;
  card.title = "LoRA of " + options_.instance_prompt;
  card.base_model = options_.model.path;
  card.command = draw_command(options_, kNativeFile);
  card.prompt = options_.instance_prompt;
  card.clip_skip = options_.clip_skip;
  card.words = words_;
  card.trains_text_encoder = options_.adapter.train_text_encoder;
  card.is_sdxl = pipeline_->is_sdxl();
  card.picture_prompt = options_.run.validation_prompt;
  if (fs::exists(folder / "contact_sheet.png")) card.pictures = {"contact_sheet.png"};
  card.settings = unusual_settings(plan_->settings, settings_of(DreamBoothOptions()));
  write_model_card(folder.string(), card);
}

std::string draw_command(const DreamBoothOptions& options, const std::string& lora) {
  auto text = fmt::format("text_to_image {} --lora {}", sd::model_arguments(options.model),
                          cli::format_word(lora));
  for (const auto& file : options.learned_embeds) {
    text += " --learned_embeds " + cli::format_word(file);
  }
  if (options.clip_skip > 0) text += fmt::format(" --clip_skip {}", options.clip_skip);
  // Captions are trained as they stand.
  return text + fmt::format(" --prompt_syntax plain --prompt {} --output picture.png",
                            cli::format_word(options.instance_prompt));
}

Outcome train_dreambooth(const DreamBoothOptions& given, const distributed::Group& group) {
  return train_as<DreamBooth>(given, group);
}

}  // namespace training
