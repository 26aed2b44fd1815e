// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/clip.h"
#include "models/packing.h"
#include "models/streaming.h"
#include "models/tiny_decoder.h"
#include "models/unet.h"
#include "models/vae.h"
#include "models/weights.h"
#include "pipeline/model_index.h"
#include "pipeline/size_conditions.h"
#include "schedulers/schedulers.h"
#include "text/prompt.h"
#include "text/tokenizer.h"

namespace sd {

class RecordedUNet;
class SingleFile;

/// What to load of a model, and where to.
struct StableDiffusionOptions {
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  /// Of the UNet and the text encoders.
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
  /// Of the autoencoder. Default: `dtype`, but fp32 instead of fp16 and bf16 where its
  /// configuration says `force_upcast`, as it does for Stable Diffusion 1.x, 2.x and XL.
  TORCH_ARG(std::optional<at::ScalarType>, vae_dtype) = std::nullopt;
  /// For a single file: a folder in diffusers layout whose configurations and tokenizer belong to
  /// it. Default: the file's own folder if it has such, otherwise those of its family.
  TORCH_ARG(std::string, model_config);
  /// A folder with `config.json` and weights of another autoencoder, such as one for SDXL that does
  /// not overflow in fp16. Default: the model's own.
  TORCH_ARG(std::string, vae);
  /// A file or folder with TAESD's decoder, see `read_tiny_decoder`: pictures are decoded with it
  /// instead, in a small part of the time and memory, as previews. Default: none.
  TORCH_ARG(std::string, taesd);
  /// A file with another UNet of the same kind, which may be of GGUF, under diffusers' or the original
  /// names. Default: the model's own.
  TORCH_ARG(std::string, unet);
  /// Accept bytes behind the last tensor of the model's safetensors files, which some published
  /// ones have. Default: false.
  TORCH_ARG(bool, allow_trailing_bytes) = false;
  /// What the UNet predicts, if not what the scheduler's file says.
  TORCH_ARG(std::optional<PredictionType>, prediction_type) = std::nullopt;
  TORCH_ARG(PackWeights, pack_weights) = PackWeights::off;
  /// How the UNet's frozen weights are kept; in fewer bits they are not packed.
  TORCH_ARG(BasePrecision, base_precision) = BasePrecision::same;
  /// Let weights lie in a file where the process would take more memory than this: see
  /// `stream_weights`. On a CPU only, and without packed weights. Default: no limit.
  TORCH_ARG(StreamingOptions, streaming);
  TORCH_ARG(bool, load_unet) = true;
  TORCH_ARG(bool, load_vae) = true;
  /// All of them, with their tokenizers. Default: true.
  TORCH_ARG(bool, load_text_encoder) = true;
};

/// One call of `StableDiffusion::sample`, with diffusers' names and defaults.
struct SampleOptions {
  TORCH_ARG(std::string, prompt);
  /// How the two prompts are read. A prompt of any length is used as a whole, in chunks.
  TORCH_ARG(PromptSyntax, prompt_syntax) = PromptSyntax::a1111;
  /// What guidance leads away from. Default: the empty prompt; SDXL: zeros instead of its states,
  /// if the model's index says so.
  TORCH_ARG(std::optional<std::string>, negative_prompt) = std::nullopt;
  TORCH_ARG(int64_t, num_inference_steps) = 50;
  /// How far to go beyond the prompt's prediction; up to 1 there is no guidance.
  TORCH_ARG(double, guidance_scale) = 7.5;
  /// Share of the guided prediction that gets the standard deviation of the prompt's own, against
  /// overexposed pictures. Default: 0. Paper: Lin et al. 2023, arXiv:2305.08891, section 3.4
  TORCH_ARG(double, guidance_rescale) = 0.0;
  /// The part of the steps that are guided, as shares of their number: step i of n if
  /// floor(start n) <= i < floor(end n). The others follow the prompt alone, in half the time.
  /// Default: all. Paper: Kynkaanniemi et al. 2024, arXiv:2404.07724. As `start` and `stop` of
  /// diffusers' guiders
  TORCH_ARG(double, guidance_start) = 0.0;
  TORCH_ARG(double, guidance_end) = 1.0;
  /// SDXL: what the UNet is told about sizes, and what guidance leads away from. Default of the
  /// latter: the same; where one of its pairs is set, the others are the picture's size and 0, 0.
  TORCH_ARG(SizeConditions, size);
  TORCH_ARG(SizeConditions, negative_size);
  /// In pixels. Default: the model's own size.
  TORCH_ARG(std::optional<int64_t>, height) = std::nullopt;
  TORCH_ARG(std::optional<int64_t>, width) = std::nullopt;
  TORCH_ARG(int64_t, num_images_per_prompt) = 1;
  /// One generator for the whole batch, as `generator=` in diffusers: a picture depends on its
  /// place in the batch.
  TORCH_ARG(uint64_t, seed) = 0;
  /// One seed for each picture instead, as a list of generators in diffusers; it sets the number.
  TORCH_ARG(std::vector<uint64_t>, seeds);
  /// Only `batch_pictures` pictures from this one (from 0) on, of the batch that `seed` and
  /// `num_images_per_prompt` give.
  TORCH_ARG(std::optional<int64_t>, batch_position) = std::nullopt;
  TORCH_ARG(int64_t, batch_pictures) = 1;
  /// How many pictures go through the UNet at once; 0 means all. It changes memory, not pictures.
  TORCH_ARG(int64_t, batch_size) = 0;
  /// One of `scheduler_names()`, over the folder's scheduler file. Default:
  /// `StableDiffusion::default_scheduler()`.
  TORCH_ARG(std::string, scheduler);
  /// Over the scheduler's file: Karras' noise levels, and leading, linspace or trailing timesteps.
  TORCH_ARG(bool, use_karras_sigmas) = false;
  TORCH_ARG(std::string, timestep_spacing);
  TORCH_ARG(double, eta) = 0.0;
  /// Layers of the text encoders to leave out at their end (of the prompt's encoding only, as
  /// diffusers); SDXL counts from the last but one.
  TORCH_ARG(int64_t, clip_skip) = 0;
  /// Unit normal (n, 4, h, w) to start from instead of the seed's; it sets size and number.
  TORCH_ARG(torch::Tensor, initial_latents);
  /// Image to image: the picture (1, 3, H, W) in [-1, 1] to start from, and the share of the steps
  /// that are taken, from 0 to 1. It sets the size.
  TORCH_ARG(torch::Tensor, image);
  TORCH_ARG(double, strength) = 0.8;
  /// On a GPU, record the UNet's pass once for all steps: see RecordedUNet. Default: false.
  TORCH_ARG(bool, cuda_graph) = false;
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

/// A Stable Diffusion 1.x, 2.x or XL model from a diffusers folder (`model_index.json`, `unet/`,
/// `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`, for SDXL also `text_encoder_2/` and
/// `tokenizer_2/`), or from a single file. What the folder says decides, not a flag. The modules
/// are public: adapters are put into them and trainers call them. They start in evaluation mode
/// without gradients.
/// Errors: c10::Error or c10::ValueError naming the folder or file, with a hint
/// Differs from diffusers: what the scheduler's file says counts as it stands
///           (StableDiffusionPipeline replaces steps_offset 0 by 1 and switches clip_sample off;
///           here that is so where the file leaves them out), and latents stay in fp32 between the
///           steps
class StableDiffusion {
 public:
  explicit StableDiffusion(const std::string& model, StableDiffusionOptions options = {});

  /// Lets ids mean these vectors: (ids, width), or (transformers, ids, width) in the order of the
  /// UNet's `attention_names()`. They are used as they are at each call, and gradients flow into
  /// them. `encoder` counts from 0.
  void learn(std::vector<int64_t> ids, const torch::Tensor& vectors, size_t encoder = 0) {
    text_.at(encoder).learned.push_back({std::move(ids), vectors.to(options_.device())});
  }

  /// The text encoder's last states, (texts, tokens, width) on the device; what is beyond its
  /// length is cut off. With a layer-wise word (texts, transformers, tokens, width). SDXL: the
  /// states of both encoders before their last layers side by side, and the second one's pooled
  /// output.
  ///
  /// Longer texts are read in so many chunks of the encoder's length, as sd-scripts trains on them
  /// with --max_token_length: (texts, chunks x (length - 2) + 2, width), the begin of the first
  /// chunk and the end of the last one around what is between; the pooled output is the first
  /// chunk's.
  PromptEmbeds encode_prompt(const std::vector<std::string>& texts, int64_t clip_skip = 0,
                             int64_t chunks = 1) {
    return encode_ids(token_ids(texts, chunks), clip_skip, chunks);
  }
  /// Its two halves: the ids (texts x chunks, tokens) for each encoder, on the device, and what the
  /// encoders make of them, which are the same operators for any ids of one shape.
  std::vector<torch::Tensor> token_ids(const std::vector<std::string>& texts,
                                       int64_t chunks = 1) const;
  PromptEmbeds encode_ids(const std::vector<torch::Tensor>& ids, int64_t clip_skip = 0,
                          int64_t chunks = 1);

  /// A prompt in chunks, for each text encoder.
  using Chunks = std::vector<std::vector<PromptChunk>>;
  Chunks prompt_chunks(const std::string& text, PromptSyntax syntax) const;

  /// The states of a prompt of any length, (1, chunks x tokens, width), with at least as many
  /// chunks as asked for. A chunk with weights is multiplied by them token by token, and then as a
  /// whole so that its mean stays what it was, as A1111 does, for each encoder by itself; the
  /// pooled output is the first chunk's.
  PromptEmbeds encode_chunks(Chunks chunks, size_t at_least = 1, int64_t clip_skip = 0);

  /// Latents of pictures as the UNet knows them (times scaling_factor), drawn from their
  /// distribution.
  /// Shapes: pixels (B, 3, H, W) in [-1, 1], result (B, 4, H / factor, W / factor) in the VAE's
  ///         dtype
  torch::Tensor encode_image(const torch::Tensor& pixels, const at::Generator& generator);

  /// Pictures of latents as the UNet knows them: (B, 3, H, W) in [0, 1] fp32, of the small decoder
  /// if there is one. An autoencoder in fp16 that overflows decodes in fp32, with one notice.
  torch::Tensor decode(const torch::Tensor& latents);

  SampleResult sample(const SampleOptions& options);

  /// The folder or file that the model came from.
  const std::string& folder() const { return folder_; }
  const StableDiffusionOptions& options() const { return options_; }
  const SchedulerConfig& scheduler_config() const { return *scheduler_config_; }
  /// "ddim" for Stable Diffusion 1.x and 2.x; SDXL: the class that the folder's file names.
  /// Errors: c10::ValueError if that class is not one of ours
  std::string default_scheduler() const;
  /// Whether the UNet is told a pooled text and sizes.
  bool is_sdxl() const { return unet_options_.text_time(); }
  /// How many text encoders there are, 1 or 2; their names in files are "text_encoder" and
  /// "text_encoder_2".
  size_t text_encoders() const { return text_.size(); }
  /// Errors of the four: c10::Error if that part was not loaded
  const Tokenizer& tokenizer(size_t encoder = 0) const;
  Tokenizer& tokenizer(size_t encoder = 0);
  UNet2DConditionModel unet() const;
  AutoencoderKL vae() const;
  CLIPTextModel text_encoder(size_t encoder = 0) const;

  /// Lets go of a part that is not needed any more; its memory is free when nobody else holds it.
  void release_vae() { vae_ = nullptr; }
  void release_text_encoder() {
    for (auto& text : text_) text.model = nullptr;
  }

  /// Pixels per latent in each direction.
  int64_t vae_scale_factor() const { return vae_options_.downsampling(); }
  /// Height and width in pixels that the model was made for.
  std::vector<int64_t> default_size() const;

 private:
  // A text encoder with what belongs to it.
  struct Text {
    std::string name;  // of its part
    std::unique_ptr<Tokenizer> tokenizer;
    CLIPTextModel model{nullptr};
    std::vector<CLIPTextEmbeddingsImpl::Learned> learned;
  };

  void check_parts() const;
  std::string part(const std::string& name) const;
  std::string source_of(const std::string& name) const;
  nlohmann::json config(const std::string& name) const;
  CLIPTextModelOptions text_options(const std::string& name) const;
  void load_unet();
  void fill_unet(const BeforeFilling& before_filling);
  void load_vae();
  void load_tiny_decoder();
  void load_text_encoder(Text& text);

  torch::Tensor on_device(size_t encoder, const std::vector<int64_t>& ids, int64_t rows) const;
  PromptEmbeds hidden_states(size_t encoder, const torch::Tensor& ids, int64_t clip_skip);
  PromptEmbeds encoded(Text& text, const torch::Tensor& ids, int64_t clip_skip) const;
  PromptEmbeds encode_chunks(size_t encoder, const std::vector<PromptChunk>& chunks,
                             int64_t clip_skip);
  std::unique_ptr<Scheduler> scheduler_for(const SampleOptions& options) const;
  torch::Tensor initial_noise(const SampleOptions& options, const NoiseSource& noise) const;
  torch::Tensor noisy_image(const SampleOptions& options, const NoiseSource& noise,
                            const Scheduler& scheduler, size_t begin);
  // What the UNet is told, with guidance in twice as many rows as pictures: the negative prompt's
  // first.
  struct Conditions {
    torch::Tensor states;
    AddedConditions added;

    Conditions prompt_alone() const;
  };
  PromptEmbeds encode_context(const SampleOptions& options);
  torch::Tensor context_sizes(const SampleOptions& options, const torch::Tensor& latents) const;
  // By the number of pictures that they are repeated for, and whether there is guidance.
  using Contexts = std::map<std::pair<int64_t, bool>, Conditions>;
  Contexts contexts_for(const SampleOptions& options, const torch::Tensor& latents);
  torch::Tensor guided(const torch::Tensor& output, const SampleOptions& options) const;
  torch::Tensor decode_one(const torch::Tensor& latent);
  torch::Tensor preview(const torch::Tensor& latent);
  torch::Tensor predict(RecordedUNet& unet, const torch::Tensor& latents, double timestep,
                        const Contexts& contexts, const SampleOptions& options, bool guides);

  std::string folder_;
  ModelIndex index_;
  std::shared_ptr<const SingleFile> file_;  // null for a folder
  StableDiffusionOptions options_;
  UNet2DConditionModelOptions unet_options_;
  AutoencoderKLOptions vae_options_;
  std::optional<SchedulerConfig> scheduler_config_;
  std::vector<Text> text_;
  UNet2DConditionModel unet_{nullptr};
  AutoencoderKL vae_{nullptr};
  TinyDecoder tiny_decoder_{nullptr};
};

}  // namespace sd
