// SPDX-License-Identifier: Apache-2.0
#include "pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "models/packing.h"
#include "models/weights.h"
#include "pipeline/device.h"
#include "pipeline/single_file.h"
#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;

const char* const parts[] = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"};

// The class that `model_index.json` names for each part with weights.
const std::pair<const char*, const char*> known_classes[] = {
    {"unet", "UNet2DConditionModel"}, {"vae", "AutoencoderKL"}, {"text_encoder", "CLIPTextModel"}};

template <typename Module>
void finish(Module& module, const StableDiffusionOptions& options) {
  module->to(options.device());
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

// Compared with all of the machine's memory, not with what is free now, so that a run which goes on
// later computes the same bits.
bool is_small(const torch::nn::Module& module) {
  std::size_t bytes = 0;
  for (const auto& parameter : module.parameters()) bytes += parameter.nbytes();
  const auto memory = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) *
                      static_cast<std::size_t>(::sysconf(_SC_PAGE_SIZE));
  return bytes <= memory / 6;
}

}  // namespace

StableDiffusion::StableDiffusion(const std::string& model, StableDiffusionOptions options)
    : folder_(model), options_(std::move(options)) {
  if (fs::is_regular_file(model)) {
    file_ = std::make_shared<SingleFile>(model, options_.model_config(), file_options(options_));
    scheduler_config_ = SchedulerConfig(file_->config("scheduler"), source_of("scheduler"));
  } else {
    check_index();
    scheduler_config_ = read_scheduler_config(part("scheduler"));
  }
  NoiseSchedule{*scheduler_config_};  // refuses a file that no scheduler could use
  unet_options_ = UNet2DConditionModelOptions::from_json(config("unet"), source_of("unet"));
  vae_options_ = AutoencoderKLOptions::from_json(config("vae"), source_of("vae"));
  check_parts();
  if (options_.load_text_encoder()) load_text_encoder();
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

void StableDiffusion::check_index() const {
  TORCH_CHECK(
      fs::exists(folder_), "'", folder_,
      "': expected a diffusers folder or a file, got nothing there; hint: is the path right?");
  const std::string path = part("model_index.json");
  TORCH_CHECK(fs::exists(path), "'", folder_,
              "': expected a diffusers folder, got one without model_index.json; hint: the folder "
              "that holds unet/, vae/ and text_encoder/");
  const auto index = read_json_file(path);
  TORCH_CHECK(!index.contains("text_encoder_2") && !index.contains("transformer"), "'", path,
              "': expected Stable Diffusion 1.x or 2.x, got ",
              index.value("_class_name", nlohmann::json()).dump());
  for (const auto& [name, known] : known_classes) {
    const auto entry = index.find(name);
    const bool named = entry != index.end() && entry->is_array() && entry->size() == 2;
    TORCH_CHECK(!named || (*entry)[1] == known, "'", path, "': expected ", name, " to be ", known,
                ", got ", (*entry)[1].dump(), "; hint: Stable Diffusion 1.x and 2.x are supported");
  }
  for (const auto* name : parts) {
    TORCH_CHECK(fs::is_directory(part(name)), "'", part(name),
                "': expected a folder, got none; hint: an unfinished download of the model?");
  }
}

void StableDiffusion::check_parts() const {
  const auto text = CLIPTextModelOptions::from_json(config("text_encoder"));
  for (const int64_t width : unet_options_.cross_attention_dim()) {
    TORCH_CHECK(width == text.hidden_size(), "'", folder_, "': expected a text encoder of width ",
                width, " (the unet's cross_attention_dim), got ", text.hidden_size(),
                "; hint: the parts belong to two models");
  }
  const int64_t channels = vae_options_.latent_channels();
  TORCH_CHECK(unet_options_.in_channels() == channels && unet_options_.out_channels() == channels,
              "'", folder_, "': expected a unet of ", channels, " channels (the vae's), got ",
              unet_options_.in_channels(), " in and ", unet_options_.out_channels(),
              " out; hint: inpainting and upscaling models are not supported");
}

void StableDiffusion::load_text_encoder() {
  const auto options =
      CLIPTextModelOptions::from_json(config("text_encoder"), source_of("text_encoder"));
  const int64_t length = options.max_position_embeddings();
  tokenizer_ =
      file_ ? file_->tokenizer(length) : std::make_unique<Tokenizer>(part("tokenizer"), length);
  TORCH_CHECK(tokenizer_->model_max_length() <= length, "'", file_ ? folder_ : part("tokenizer"),
              "': expected at most ", length, " tokens (the text encoder's positions), got ",
              tokenizer_->model_max_length());
  const UninitializedModules uninitialized(options_.dtype());
  text_encoder_ = CLIPTextModel(options);
  if (file_) {
    file_->load_text_encoder(*text_encoder_);
  } else {
    load_weights(*text_encoder_, find_weights(part("text_encoder"), "model"),
                 CLIPTextModelImpl::parameter_name, file_options(options_));
  }
  finish(text_encoder_, options_);
}

void StableDiffusion::load_unet() {
  const UninitializedModules uninitialized(options_.dtype());
  unet_ = UNet2DConditionModel(unet_options_);
  if (file_) {
    file_->load_unet(*unet_, unet_options_);
  } else {
    load_weights(*unet_, find_weights(part("unet"), "diffusion_pytorch_model"), {},
                 file_options(options_));
  }
  finish(unet_, options_);
  if (options_.device().is_cuda()) unet_->group_projections();
  const auto packs = options_.pack_weights();
  if (packs == PackWeights::on || (packs == PackWeights::if_small && is_small(*unet_))) {
    sd::pack_weights(unet_);
  }
}

void StableDiffusion::load_vae() {
  const bool upcast = vae_options_.force_upcast() && at::isReducedFloatingType(options_.dtype());
  const UninitializedModules uninitialized(
      options_.vae_dtype().value_or(upcast ? at::kFloat : options_.dtype()));
  vae_ = AutoencoderKL(vae_options_);
  if (file_) {
    file_->load_vae(*vae_, vae_options_);
  } else {
    load_weights(*vae_, find_weights(part("vae"), "diffusion_pytorch_model"), vae_legacy_name,
                 file_options(options_));
  }
  finish(vae_, options_);
}

const Tokenizer& StableDiffusion::tokenizer() const {
  require_part(text_encoder_, "text_encoder");
  return *tokenizer_;
}

Tokenizer& StableDiffusion::tokenizer() {
  require_part(text_encoder_, "text_encoder");
  return *tokenizer_;
}

UNet2DConditionModel StableDiffusion::unet() const { return require_part(unet_, "unet"); }

AutoencoderKL StableDiffusion::vae() const { return require_part(vae_, "vae"); }

CLIPTextModel StableDiffusion::text_encoder() const {
  return require_part(text_encoder_, "text_encoder");
}

std::vector<int64_t> StableDiffusion::default_size() const {
  const auto& size = unet_options_.sample_size();
  TORCH_CHECK(!size.empty(), "'", part("unet/config.json"),
              "': expected a sample_size, got none; hint: give the height and width");
  return {size.front() * vae_scale_factor(), size.back() * vae_scale_factor()};
}

torch::Tensor StableDiffusion::encode_prompt(const std::vector<std::string>& texts,
                                             int64_t clip_skip) {
  TORCH_CHECK_VALUE(!texts.empty(), "sd::StableDiffusion::encode_prompt: expected texts, got none");
  std::vector<int64_t> ids;
  for (const auto& text : texts) {
    const auto encoded = tokenizer().encode(text);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  }
  return hidden_states(ids, static_cast<int64_t>(texts.size()), clip_skip);
}

torch::Tensor StableDiffusion::hidden_states(const std::vector<int64_t>& ids, int64_t rows,
                                             int64_t clip_skip) {
  const int64_t largest = *std::max_element(ids.begin(), ids.end());
  const int64_t known = text_encoder()->options.vocab_size();
  TORCH_CHECK(largest < known, "'", part("tokenizer"), "': expected ids below ", known,
              " (the text encoder's vocab_size), got ", largest,
              "; hint: the tokenizer belongs to another model");
  const auto batch = upload(torch::tensor(ids, at::kLong).view({rows, -1}), options_.device());
  auto& learned = text_encoder()->text_model->embeddings->learned;
  learned = learned_;
  int64_t layers = 0;
  for (const auto& word : learned_)
    layers = word.vectors.dim() == 3 ? word.vectors.size(0) : layers;
  if (layers == 0) return text_encoder()->hidden_state(batch, clip_skip);
  std::vector<torch::Tensor> states;
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (size_t i = 0; i < learned_.size(); ++i) {
      if (learned_[i].vectors.dim() == 3) learned[i].vectors = learned_[i].vectors[layer];
    }
    states.push_back(text_encoder()->hidden_state(batch, clip_skip));
  }
  return at::stack(states, /*dim=*/1);
}

torch::Tensor StableDiffusion::encode_chunks(std::vector<PromptChunk> chunks, size_t at_least,
                                             int64_t clip_skip) {
  while (chunks.size() < at_least) {
    chunks.push_back(prompt_chunks(tokenizer(), "", PromptSyntax::plain).front());
  }
  std::vector<int64_t> ids;
  for (const auto& chunk : chunks) ids.insert(ids.end(), chunk.ids.begin(), chunk.ids.end());
  auto states = hidden_states(ids, static_cast<int64_t>(chunks.size()), clip_skip);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (!chunks[i].weighted()) continue;
    const auto weights = torch::tensor(chunks[i].weights).to(states.device(), at::kFloat);
    auto state = states[static_cast<int64_t>(i)];
    const auto before = state.to(at::kFloat).flatten(-2).mean(-1, /*keepdim=*/true).unsqueeze(-1);
    const auto weighted = state.to(at::kFloat) * weights.unsqueeze(-1);
    const auto after = weighted.flatten(-2).mean(-1, /*keepdim=*/true).unsqueeze(-1);
    state.copy_(weighted * (before / after));  // each layer's states by themselves
  }
  if (states.dim() == 3) return states.reshape({1, -1, states.size(-1)});
  return states.transpose(0, 1).reshape({1, states.size(1), -1, states.size(-1)});
}

torch::Tensor StableDiffusion::encode_image(const torch::Tensor& pixels,
                                            const at::Generator& generator) {
  auto model = vae();
  const auto weight = model->parameters().front();
  const auto distribution = model->encode(pixels.to(weight.device(), weight.scalar_type()));
  return distribution.sample(generator) * vae_options_.scaling_factor();
}

torch::Tensor StableDiffusion::decode(const torch::Tensor& latents) {
  auto model = vae();
  const auto weight = model->parameters().front();
  std::vector<torch::Tensor> pictures;
  // One at a time: the decoder's activations are many times the size of a picture.
  for (const auto& latent : latents.split(1)) {
    const auto input =
        (latent / vae_options_.scaling_factor()).to(weight.device(), weight.scalar_type());
    pictures.push_back((model->decode(input).to(at::kFloat) / 2 + 0.5).clamp(0, 1));
  }
  return at::cat(pictures);
}

}  // namespace sd
