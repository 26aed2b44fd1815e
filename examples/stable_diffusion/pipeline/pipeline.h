// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/clip.h"
#include "models/packing.h"
#include "models/unet.h"
#include "models/vae.h"
#include "schedulers/schedulers.h"
#include "text/prompt.h"
#include "text/tokenizer.h"

namespace sd {

class SingleFile;

/// What to load of a model, and where to.
struct StableDiffusionOptions {
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  /// Of the UNet and the text encoder.
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
  /// Of the autoencoder. Default: `dtype`, but fp32 instead of fp16 and bf16 where its
  /// configuration says `force_upcast`, as it does for Stable Diffusion 1.x and 2.x.
  TORCH_ARG(std::optional<at::ScalarType>, vae_dtype) = std::nullopt;
  /// For a single file: a folder in diffusers layout whose configurations and tokenizer belong to
  /// it. Default: the file's own folder if it has such, otherwise those of Stable Diffusion 1.x.
  TORCH_ARG(std::string, model_config);
  /// Accept bytes behind the last tensor of the model's safetensors files, which some published
  /// ones have. Default: false.
  TORCH_ARG(bool, allow_trailing_bytes) = false;
  TORCH_ARG(PackWeights, pack_weights) = PackWeights::off;
  TORCH_ARG(bool, load_unet) = true;
  TORCH_ARG(bool, load_vae) = true;
  /// With the tokenizer. Default: true.
  TORCH_ARG(bool, load_text_encoder) = true;
};

/// One call of `StableDiffusion::sample`, with diffusers' names and defaults.
struct SampleOptions {
  TORCH_ARG(std::string, prompt);
  /// How the two prompts are read. A prompt of any length is used as a whole, in chunks.
  TORCH_ARG(PromptSyntax, prompt_syntax) = PromptSyntax::a1111;
  /// What guidance leads away from. Default: the empty prompt.
  TORCH_ARG(std::string, negative_prompt);
  TORCH_ARG(int64_t, num_inference_steps) = 50;
  /// How far to go beyond the prompt's prediction; up to 1 there is no guidance.
  TORCH_ARG(double, guidance_scale) = 7.5;
  /// In pixels. Default: the model's own size.
  TORCH_ARG(std::optional<int64_t>, height) = std::nullopt;
  TORCH_ARG(std::optional<int64_t>, width) = std::nullopt;
  TORCH_ARG(int64_t, num_images_per_prompt) = 1;
  /// One generator for the whole batch, as `generator=` in diffusers: a picture depends on its
  /// place in the batch.
  TORCH_ARG(uint64_t, seed) = 0;
  /// One seed for each picture instead, as a list of generators in diffusers; it sets the number.
  TORCH_ARG(std::vector<uint64_t>, seeds);
  /// Only this picture (from 0) of the batch that `seed` and `num_images_per_prompt` give.
  TORCH_ARG(std::optional<int64_t>, batch_position) = std::nullopt;
  /// How many pictures go through the UNet at once; 0 means all. It changes memory, not pictures.
  TORCH_ARG(int64_t, batch_size) = 0;
  /// One of `scheduler_names()`, over the folder's scheduler file.
  TORCH_ARG(std::string, scheduler) = "ddim";
  /// Over the scheduler's file: Karras' noise levels, and leading, linspace or trailing timesteps.
  TORCH_ARG(bool, use_karras_sigmas) = false;
  TORCH_ARG(std::string, timestep_spacing);
  TORCH_ARG(double, eta) = 0.0;
  /// Layers of the text encoder to leave out at its end (of the prompt's encoding only, as
  /// diffusers).
  TORCH_ARG(int64_t, clip_skip) = 0;
  /// Unit normal (n, 4, h, w) to start from instead of the seed's; it sets size and number.
  TORCH_ARG(torch::Tensor, initial_latents);
  /// Image to image: the picture (1, 3, H, W) in [-1, 1] to start from, and the share of the steps
  /// that are taken, from 0 to 1. It sets the size.
  TORCH_ARG(torch::Tensor, image);
  TORCH_ARG(double, strength) = 0.8;
  /// Decode the latents into pictures. Default: true.
  TORCH_ARG(bool, decode) = true;
  /// Called before the first and after each step with the steps done and their number.
  using Callback = std::function<void(int64_t done, int64_t total)>;
  TORCH_ARG(Callback, callback);
};

struct SampleResult {
  torch::Tensor latents;   ///< (n, 4, h, w) as the UNet knows them, on the model's device
  torch::Tensor pictures;  ///< (n, 3, H, W) in [0, 1] fp32; undefined if not asked for
};

/// A Stable Diffusion 1.x or 2.x model from a diffusers folder (`model_index.json`, `unet/`,
/// `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`), or one of 1.x from a single file. The
/// modules are public: adapters are put into them and trainers call them. They start in evaluation
/// mode without gradients.
/// Errors: c10::Error or c10::ValueError naming the folder or file, with a hint
/// Differs from diffusers: the scheduler's file counts as it stands (StableDiffusionPipeline
///           replaces steps_offset 0 by 1 and switches clip_sample off), and latents stay in fp32
///           between the steps
class StableDiffusion {
 public:
  explicit StableDiffusion(const std::string& model, StableDiffusionOptions options = {});

  /// Lets ids mean these vectors: (ids, width), or (transformers, ids, width) in the order of the
  /// UNet's `attention_names()`. They are used as they are at each call, and gradients flow into
  /// them.
  void learn(std::vector<int64_t> ids, const torch::Tensor& vectors) {
    learned_.push_back({std::move(ids), vectors.to(options_.device())});
  }

  /// The text encoder's last states, (texts, tokens, width) on the device; what is beyond its
  /// length is cut off. With a layer-wise word (texts, transformers, tokens, width).
  torch::Tensor encode_prompt(const std::vector<std::string>& texts, int64_t clip_skip = 0);

  /// The states of a prompt of any length, (1, chunks x tokens, width), with at least as many
  /// chunks as asked for. A chunk with weights is multiplied by them token by token, and then as a
  /// whole so that its mean stays what it was, as A1111 does.
  torch::Tensor encode_chunks(std::vector<PromptChunk> chunks, size_t at_least = 1,
                              int64_t clip_skip = 0);

  /// Latents of pictures as the UNet knows them (times scaling_factor), drawn from their
  /// distribution.
  /// Shapes: pixels (B, 3, H, W) in [-1, 1], result (B, 4, H / factor, W / factor) in the VAE's
  ///         dtype
  torch::Tensor encode_image(const torch::Tensor& pixels, const at::Generator& generator);

  /// Pictures of latents as the UNet knows them: (B, 3, H, W) in [0, 1] fp32.
  torch::Tensor decode(const torch::Tensor& latents);

  SampleResult sample(const SampleOptions& options);

  /// The folder or file that the model came from.
  const std::string& folder() const { return folder_; }
  const StableDiffusionOptions& options() const { return options_; }
  const SchedulerConfig& scheduler_config() const { return *scheduler_config_; }
  /// Errors of the four: c10::Error if that part was not loaded
  const Tokenizer& tokenizer() const;
  Tokenizer& tokenizer();
  UNet2DConditionModel unet() const;
  AutoencoderKL vae() const;
  CLIPTextModel text_encoder() const;

  /// Lets go of a part that is not needed any more; its memory is free when nobody else holds it.
  void release_vae() { vae_ = nullptr; }
  void release_text_encoder() { text_encoder_ = nullptr; }

  /// Pixels per latent in each direction.
  int64_t vae_scale_factor() const { return vae_options_.downsampling(); }
  /// Height and width in pixels that the model was made for.
  std::vector<int64_t> default_size() const;

 private:
  void check_index() const;
  void check_parts() const;
  std::string part(const std::string& name) const;
  std::string source_of(const std::string& name) const;
  nlohmann::json config(const std::string& name) const;
  void load_unet();
  void load_vae();
  void load_text_encoder();

  torch::Tensor hidden_states(const std::vector<int64_t>& ids, int64_t rows, int64_t clip_skip);
  std::unique_ptr<Scheduler> scheduler_for(const SampleOptions& options) const;
  torch::Tensor initial_noise(const SampleOptions& options, const NoiseSource& noise) const;
  torch::Tensor noisy_image(const SampleOptions& options, const NoiseSource& noise,
                            const Scheduler& scheduler, size_t begin);
  torch::Tensor encode_context(const SampleOptions& options);
  // A prompt's states by the number of pictures that they are repeated for.
  using Contexts = std::map<int64_t, torch::Tensor>;
  torch::Tensor predict(const torch::Tensor& latents, double timestep, const Contexts& contexts,
                        const SampleOptions& options);

  std::vector<CLIPTextEmbeddingsImpl::Learned> learned_;
  std::string folder_;
  std::shared_ptr<const SingleFile> file_;  // null for a folder
  StableDiffusionOptions options_;
  UNet2DConditionModelOptions unet_options_;
  AutoencoderKLOptions vae_options_;
  std::optional<SchedulerConfig> scheduler_config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  UNet2DConditionModel unet_{nullptr};
  AutoencoderKL vae_{nullptr};
  CLIPTextModel text_encoder_{nullptr};
};

}  // namespace sd
