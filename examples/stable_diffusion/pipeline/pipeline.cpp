// SPDX-License-Identifier: Apache-2.0
#include "pipeline/pipeline.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "models/config.h"
#include "models/packing.h"
#include "models/weights.h"
#include "pipeline/device.h"
#include "pipeline/single_file.h"
#include "pipeline/unet_file.h"
#include "support/cli/process.h"
#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;

template <typename Module>
void finish(Module& module, const StableDiffusionOptions& options) {
  // Casts and moves bring weights in fewer bits back in full, also those to where they are.
  if (!options.device().is_cpu()) module->to(options.device());
  module->eval();
  for (auto& parameter : module->parameters()) parameter.set_requires_grad(false);
}

lightlora::SafetensorsOptions file_options(const StableDiffusionOptions& options) {
  return lightlora::SafetensorsOptions().allow_trailing_bytes(options.allow_trailing_bytes());
}

template <typename Module>
Module require_part(const Module& module, const char* name) {
  TORCH_CHECK(!module.is_empty(), "sd::StableDiffusion: expected the ", name,
              " to be loaded, got a pipeline without it; hint: load_", name, "(true)");
  return module;
}

// A scheduler's file as the schedulers of this model read it. What the file leaves out is not left
// to the classes, whose defaults are made for pixels: latents are not clipped to [-1, 1], and the
// timesteps begin at 1, as diffusers' StableDiffusionPipeline has it for files of every class (and
// that of SDXL has not).
SchedulerConfig for_latents(const SchedulerConfig& file, const StableDiffusionOptions& options,
                            bool sdxl) {
  if (file.flag("clip_sample", false)) {
    TORCH_WARN("'", file.source(), "': clip_sample is true, so ddim, ddpm and lcm clip latents to ",
               "[-1, 1], which greys pictures; hint: set it to false, as diffusers' pipeline does");
  }
  auto config = file.with_defaults({{"clip_sample", false}, {"steps_offset", sdxl ? 0 : 1}});
  if (const auto type = options.prediction_type()) {
    config = config.with("prediction_type", *type == PredictionType::epsilon  ? "epsilon"
                                            : *type == PredictionType::sample ? "sample"
                                                                              : "v_prediction");
  }
  return config;
}

AutoencoderKLOptions other_vae_options(const std::string& folder) {
  const auto path = (fs::path(folder) / "config.json").string();
  TORCH_CHECK(fs::exists(path), "'", folder,
              "': expected a folder with an autoencoder's config.json for ",
              "--pretrained_vae_model_name_or_path, got ",
              fs::exists(folder) ? "one without" : "nothing there");
  return AutoencoderKLOptions::from_json(read_json_file(path), path);
}

void check_streaming(const StableDiffusionOptions& options) {
  if (options.streaming().memory_limit == 0) return;
  TORCH_CHECK_VALUE(options.device().is_cpu(), "--memory_limit cannot be combined with a GPU: it ",
                    "bounds the machine's own memory; hint: --gradient_checkpointing");
  TORCH_CHECK_VALUE(options.pack_weights() != PackWeights::on, "--memory_limit cannot be combined ",
                    "with --pack_weights on: packed weights are copies that stay in memory");
}

void check_base_precision(const StableDiffusionOptions& options) {
  const auto kept = to_string(options.base_precision());
  if (kept.empty()) return;
  TORCH_CHECK_VALUE(options.streaming().memory_limit == 0, "--base_precision ", kept, " cannot be ",
                    "combined with --memory_limit: such weights do not lie in a file");
  TORCH_CHECK_VALUE(options.pack_weights() != PackWeights::on, "--base_precision ", kept,
                    " cannot be combined with --pack_weights on: such weights have a layout of ",
                    "their own");
}

// Packed weights are there twice. Compared with all of the machine's memory, not with what is free
// now, so that a run which goes on later computes the same bits; and SDXL's UNet, of 5 GB in half
// precision, is never held twice.
bool is_small(const torch::nn::Module& module) {
  std::size_t bytes = 0;
  for (const auto& parameter : module.parameters()) bytes += parameter.nbytes();
  const auto memory = static_cast<std::size_t>(cli::machine_memory());
  constexpr std::size_t kLargest = std::size_t{4} << 30;
  return bytes <= std::min(memory / 6, kLargest);
}

}  // namespace

StableDiffusion::StableDiffusion(const std::string& model, StableDiffusionOptions options)
    : folder_(model), options_(std::move(options)) {
  check_streaming(options_);
  check_base_precision(options_);
  if (fs::is_regular_file(model)) {
    file_ = std::make_shared<SingleFile>(model, options_.model_config(), file_options(options_));
    index_ = file_->index();
    scheduler_config_ = SchedulerConfig(file_->config("scheduler"), source_of("scheduler"));
  } else {
    index_ = read_model_index(folder_);
    scheduler_config_ = read_scheduler_config(part("scheduler"));
    if (!options_.model_config().empty()) {
      TORCH_WARN_ONCE(
          "--model_config has no effect with a folder, which has configurations of its ", "own: '",
          folder_, "'");
    }
  }
  check_scheduler_class(scheduler_config_->values(), scheduler_config_->source());
  NoiseSchedule{*scheduler_config_};  // refuses a file that no scheduler could use
  unet_options_ = UNet2DConditionModelOptions::from_json(config("unet"), source_of("unet"));
  vae_options_ = options_.vae().empty()
                     ? AutoencoderKLOptions::from_json(config("vae"), source_of("vae"))
                     : other_vae_options(options_.vae());
  scheduler_config_ = for_latents(*scheduler_config_, options_, is_sdxl());
  check_parts();
  if (!options_.taesd().empty()) load_tiny_decoder();
  for (const auto& name : index_.text_encoders()) {
    auto& text = text_.emplace_back();
    text.name = name;
    if (options_.load_text_encoder()) load_text_encoder(text);
  }
  if (options_.load_unet()) load_unet();
  if (options_.load_vae()) load_vae();
}

std::string StableDiffusion::part(const std::string& name) const {
  return (fs::path(folder_) / name).string();
}

// What to call a part's configuration in messages.
std::string StableDiffusion::source_of(const std::string& name) const {
  return file_ ? folder_ + ": " + name : part(name + "/config.json");
}

nlohmann::json StableDiffusion::config(const std::string& name) const {
  return file_ ? file_->config(name) : read_json_file(part(name + "/config.json"));
}

CLIPTextModelOptions StableDiffusion::text_options(const std::string& name) const {
  const auto json = config(name);
  auto options = CLIPTextModelOptions::from_json(json, source_of(name));
  if (name == "text_encoder_2") {
    options.projection_dim(ConfigReader(json, source_of(name)).positive("projection_dim", 512));
  }
  return options;
}

void StableDiffusion::check_parts() const {
  int64_t text = 0, pooled = 0;
  for (const auto& name : index_.text_encoders()) {
    const auto options = text_options(name);
    text += options.hidden_size();
    pooled = options.projection_dim().value_or(0);
  }
  for (const int64_t width : unet_options_.cross_attention_dim()) {
    TORCH_CHECK(width == text, "'", folder_, "': expected a text encoder of width ", width,
                " (the unet's cross_attention_dim), got ", text,
                index_.two_text_encoders ? " of both together" : "",
                "; hint: the parts belong to two models");
  }
  TORCH_CHECK(index_.two_text_encoders == unet_options_.text_time(), "'", folder_,
              "': expected two text encoders exactly if the unet's addition_embed_type is ",
              "text_time, got ", index_.two_text_encoders ? "two without it" : "one with it",
              "; hint: the parts belong to two models");
  const int64_t numbers = 6 * unet_options_.addition_time_embed_dim();
  TORCH_CHECK(
      !is_sdxl() || unet_options_.projection_class_embeddings_input_dim() == pooled + numbers, "'",
      folder_, "': expected projection_class_embeddings_input_dim ", pooled + numbers,
      " (the projection of text_encoder_2 and six numbers), got ",
      unet_options_.projection_class_embeddings_input_dim(),
      "; hint: a refiner, which has five numbers, is not supported");
  const int64_t channels = vae_options_.latent_channels();
  TORCH_CHECK(unet_options_.in_channels() == channels && unet_options_.out_channels() == channels,
              "'", folder_, "': expected a unet of ", channels, " channels (the vae's), got ",
              unet_options_.in_channels(), " in and ", unet_options_.out_channels(),
              " out; hint: inpainting and upscaling models are not supported");
}

void StableDiffusion::load_text_encoder(Text& text) {
  auto options = text_options(text.name);
  const int64_t length = options.max_position_embeddings();
  const auto tokenizer = ModelIndex::tokenizer_of(text.name);
  text.tokenizer = file_ ? file_->tokenizer(length, tokenizer)
                         : std::make_unique<Tokenizer>(part(tokenizer), length);
  TORCH_CHECK(text.tokenizer->model_max_length() <= length, "'", file_ ? folder_ : part(tokenizer),
              "': expected at most ", length, " tokens (the text encoder's positions), got ",
              text.tokenizer->model_max_length());
  // Old files call the end token 2 and mean the largest id; a learned word's would be larger still.
  if (options.eos_token_id() == 2) options.eos_token_id(text.tokenizer->eos_id());
  const UninitializedModules uninitialized(options_.dtype());
  text.model = CLIPTextModel(options);
  stream_weights(*text.model, options_.streaming());
  if (file_) {
    file_->load_text_encoder(*text.model, text.name);
  } else {
    load_weights(*text.model, find_weights(part(text.name), "model"),
                 CLIPTextModelImpl::parameter_name, file_options(options_));
  }
  finish(text.model, options_);
}

void StableDiffusion::load_unet() {
  const UninitializedModules uninitialized(options_.dtype());
  unet_ = UNet2DConditionModel(unet_options_);
  stream_weights(*unet_, options_.streaming());
  const auto precision = options_.base_precision();
  const bool quantises = precision != BasePrecision::same;
  BeforeFilling before_filling;
  if (quantises && options_.device().is_cpu()) {
    // One after the other, so that the full weights are never in memory together.
    before_filling = [&](const ReadWeight& read) {
      const auto format = precision == BasePrecision::int8 ? lightlora::WeightFormat::int8
                                                           : lightlora::WeightFormat::nf4;
      quantise(*unet_, precision, [&](const std::string& layer, const at::Tensor&) {
        return read(layer + ".weight", format);
      });
    };
  }
  fill_unet(before_filling);
  finish(unet_, options_);
  if (quantises) {
    if (!options_.device().is_cpu()) quantise(*unet_, precision);
    return;
  }
  if (options_.device().is_cuda()) unet_->group_projections();
  const auto packs = options_.pack_weights();
  const bool may_pack = packs == PackWeights::if_small && options_.streaming().memory_limit == 0;
  if (packs == PackWeights::on || (may_pack && is_small(*unet_))) {
    sd::pack_weights(unet_);
  }
}

void StableDiffusion::fill_unet(const BeforeFilling& before_filling) {
  if (!options_.unet().empty()) {
    load_unet_file(*unet_, options_.unet(), unet_options_, file_options(options_), before_filling);
  } else if (file_) {
    file_->load_unet(*unet_, unet_options_, before_filling);
  } else {
    load_weights(*unet_, find_weights(part("unet"), "diffusion_pytorch_model"), {},
                 file_options(options_), before_filling);
  }
}

void StableDiffusion::load_vae() {
  const bool upcast = vae_options_.force_upcast() && at::isReducedFloatingType(options_.dtype());
  const UninitializedModules uninitialized(
      options_.vae_dtype().value_or(upcast ? at::kFloat : options_.dtype()));
  vae_ = AutoencoderKL(vae_options_);
  stream_weights(*vae_, options_.streaming());
  if (file_ && options_.vae().empty()) {
    file_->load_vae(*vae_, vae_options_);
  } else {
    const auto folder = options_.vae().empty() ? part("vae") : options_.vae();
    load_weights(*vae_, find_weights(folder, "diffusion_pytorch_model"), vae_legacy_name,
                 file_options(options_));
  }
  finish(vae_, options_);
}

void StableDiffusion::load_tiny_decoder() {
  tiny_decoder_ = read_tiny_decoder(options_.taesd());
  const auto& sizes = tiny_decoder_->options;
  TORCH_CHECK(sizes.latent_channels() == vae_options_.latent_channels() &&
                  sizes.upsampling() == vae_scale_factor(),
              "'", options_.taesd(), "': expected a decoder of ", vae_options_.latent_channels(),
              " channels and ", vae_scale_factor(), " pixels for a latent, as the model's, got ",
              sizes.latent_channels(), " and ", sizes.upsampling(),
              "; hint: is it for another family of models?");
  tiny_decoder_->to(options_.device(), options_.vae_dtype().value_or(options_.dtype()));
}

const Tokenizer& StableDiffusion::tokenizer(size_t encoder) const {
  text_encoder(encoder);
  return *text_[encoder].tokenizer;
}

Tokenizer& StableDiffusion::tokenizer(size_t encoder) {
  text_encoder(encoder);
  return *text_[encoder].tokenizer;
}

UNet2DConditionModel StableDiffusion::unet() const { return require_part(unet_, "unet"); }

AutoencoderKL StableDiffusion::vae() const { return require_part(vae_, "vae"); }

CLIPTextModel StableDiffusion::text_encoder(size_t encoder) const {
  return require_part(text_.at(encoder).model, "text_encoder");
}

std::string StableDiffusion::default_scheduler() const {
  return is_sdxl() ? scheduler_of_class(*scheduler_config_) : "ddim";
}

std::vector<int64_t> StableDiffusion::default_size() const {
  const auto& size = unet_options_.sample_size();
  TORCH_CHECK(!size.empty(), "'", part("unet/config.json"),
              "': expected a sample_size, got none; hint: give the height and width");
  return {size.front() * vae_scale_factor(), size.back() * vae_scale_factor()};
}

torch::Tensor StableDiffusion::encode_image(const torch::Tensor& pixels,
                                            const at::Generator& generator) {
  auto model = vae();
  const auto weight = model->parameters().front();
  const auto distribution = model->encode(pixels.to(weight.device(), weight.scalar_type()));
  return distribution.sample(generator) * vae_options_.scaling_factor();
}

torch::Tensor StableDiffusion::decode_one(const torch::Tensor& latent) {
  auto model = vae();
  const auto weight = model->parameters().front();
  const auto unscaled = latent / vae_options_.scaling_factor();
  const auto picture =
      model->decode(unscaled.to(weight.device(), weight.scalar_type())).to(at::kFloat);
  if (weight.scalar_type() != at::kHalf || picture.isfinite().all().item<bool>()) return picture;
  TORCH_WARN_ONCE("'", folder_, "': the autoencoder overflows in fp16; it decodes in fp32 from ",
                  "now on");
  model->to(at::kFloat);
  return model->decode(unscaled.to(weight.device(), at::kFloat));
}

torch::Tensor StableDiffusion::preview(const torch::Tensor& latent) {
  const at::NoGradGuard no_grad;
  const auto weight = tiny_decoder_->parameters().front();
  return tiny_decoder_->forward(latent.to(weight.device(), weight.scalar_type())).to(at::kFloat);
}

torch::Tensor StableDiffusion::decode(const torch::Tensor& latents) {
  std::vector<torch::Tensor> pictures;
  // One at a time: the decoder's activations are many times the size of a picture.
  for (const auto& latent : latents.split(1)) {
    const auto picture = tiny_decoder_.is_empty() ? decode_one(latent) / 2 + 0.5 : preview(latent);
    pictures.push_back(picture.clamp(0, 1));
  }
  return at::cat(pictures);
}

}  // namespace sd
