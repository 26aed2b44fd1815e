// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/clip.h"
#include "models/unet.h"
#include "models/vae.h"
#include "models/weights.h"
#include "pipeline/model_index.h"
#include "pipeline/single_file_scheduler.h"

namespace sd {

class StableDiffusion;
class Tokenizer;

/// A Stable Diffusion 1.x, 2.x or XL model in one file, `.safetensors` or what torch.save wrote
/// (`.ckpt`), under the names of the original code. Such a file has weights alone: the family
/// follows from the names of its text encoders, sizes are read from their shapes, what the UNet
/// predicts as `single_file_scheduler` finds it, and the rest (numbers of heads and groups,
/// scaling, noise schedule) and the tokenizers are those of the family.
/// What counts before that, in this order: a folder in diffusers layout, the file's own metadata if
/// `save_single_file` wrote it, and the folder that it lies in.
class SingleFile {
 public:
  /// `config_folder` as in `StableDiffusionOptions`; empty: the file's own folder if it is one.
  /// Errors: c10::Error naming the file if it is of another kind
  explicit SingleFile(const std::string& path, const std::string& config_folder = "",
                      lightlora::SafetensorsOptions options = {});

  ModelFamily family() const;
  /// What `model_index.json` of a folder would say.
  ModelIndex index() const;
  /// What `<part>/config.json` (or `scheduler/scheduler_config.json`) of a folder would say.
  nlohmann::json config(const std::string& part) const;
  /// That of the configuration, or CLIP's own, which comes with us and fills up with the token
  /// that the encoder was trained with; the length as in `Tokenizer`.
  std::unique_ptr<Tokenizer> tokenizer(int64_t default_length = 77,
                                       const std::string& name = "tokenizer") const;
  /// The texts of its files, by name.
  nlohmann::json tokenizer_texts(const std::string& name = "tokenizer") const;

  /// Fill a module of the part. The UNet's says too what the file holds beside the parts; its
  /// `before_filling` is that of `load_weights`.
  /// Errors: those of `load_weights`
  void load_unet(torch::nn::Module& module, const UNet2DConditionModelOptions& options,
                 const BeforeFilling& before_filling = {}) const;
  void load_vae(torch::nn::Module& module, const AutoencoderKLOptions& options) const;
  void load_text_encoder(CLIPTextModelImpl& module, const std::string& text_encoder) const;

 private:
  // What the names of a text encoder begin with, and whose names they are.
  struct TextPlace {
    std::string prefix;
    bool open_clip = false;
  };

  const lightlora::TensorInfo* find(const std::string& name) const;
  bool has(const std::string& start) const;
  bool two_text_encoders() const { return has("conditioner.embedders."); }
  TextPlace text_place(const std::string& text_encoder) const;
  int64_t size(const std::string& name, size_t dimension) const;
  void check_kind() const;
  void name_others() const;
  nlohmann::json embedded(const std::string& key) const;
  bool has_own_tokenizer(const std::string& name) const;
  std::string tokenizer_folder(const std::string& name) const;
  nlohmann::json guessed(const std::string& part) const;
  int64_t transformer_layers(const std::string& attention) const;
  nlohmann::json unet_config() const;
  void add_family(nlohmann::json& unet) const;
  nlohmann::json vae_config() const;
  nlohmann::json text_config(const std::string& text_encoder) const;
  void load(torch::nn::Module& module, const std::string& prefix,
            const std::function<std::string(const std::string&)>& original,
            const BeforeFilling& before_filling = {}) const;

  std::string path_, folder_, parent_, wrapper_;
  lightlora::SafetensorsOptions options_;
  std::unique_ptr<lightlora::TensorFile> file_;
};

/// The tokenizers of a model, which is a folder in diffusers layout or a single file: one for each
/// text encoder.
std::vector<std::unique_ptr<Tokenizer>> load_tokenizers(const std::string& model,
                                                        const std::string& config_folder = "",
                                                        lightlora::SafetensorsOptions options = {});

/// Writes all weights of a pipeline as such a file, in the pipeline's dtype. The metadata hold its
/// configurations, and its tokenizers if they are not CLIP's own, so that the file can be read
/// alone. A model of v is marked for A1111 and ComfyUI.
/// Errors: c10::Error for a model that the original layout has no names for, or if the file cannot
/// be written; nothing is left half-written
void save_single_file(const StableDiffusion& pipeline, const std::string& path);

}  // namespace sd
