// SPDX-License-Identifier: Apache-2.0
#include "pipeline/model_options.h"

#include <filesystem>

#include "support/cli/format.h"

namespace sd {

namespace {

const cli::Choices<std::optional<PredictionType>>& prediction_types() {
  using Type = PredictionType;
  static const cli::Choices<std::optional<Type>> types{{"auto", std::nullopt},
                                                       {"epsilon", Type::epsilon},
                                                       {"v_prediction", Type::v_prediction},
                                                       {"sample", Type::sample}};
  return types;
}

}  // namespace

void bind_model(cli::App& app, ModelOptions& options) {
  app.add_option(
         "--pretrained_model_name_or_path", options.path,
         "Stable Diffusion model (1.x, 2.x or XL): a folder in diffusers layout, or a single "
         ".safetensors, .ckpt or .gguf file")
      ->required()
      ->free_on_resume();
}

void bind_prediction_type(cli::App& app, ModelOptions& options) {
  app.add_choice("--prediction_type", options.load.prediction_type(), prediction_types(),
                 "What the model predicts; auto: what its scheduler's file says");
}

void bind_single_file(cli::App& app, ModelOptions& options) {
  app.add_option("--model_config", options.load.model_config(),
                 "For a single file: folder in diffusers layout with its configurations and "
                 "tokenizer (default: the file's own folder, or those of its family)")
      ->free_on_resume();
  app.add_flag("--allow_trailing_bytes", options.load.allow_trailing_bytes(),
               "Accept models and LoRA files with bytes behind their last tensor, which some "
               "published ones have")
      ->free_on_resume();
}

void bind_vae(cli::App& app, ModelOptions& options) {
  app.add_option("--pretrained_vae_model_name_or_path", options.load.vae(),
                 "Folder of another autoencoder, with its config.json, such as one for SDXL that "
                 "does not overflow in fp16 (default: the model's own)")
      ->free_on_resume();
  app.add_option(
         "--taesd", options.load.taesd(),
         "TAESD's decoder, a file or a folder of diffusers' AutoencoderTiny, of the model's "
         "family: pictures are decoded with it, fast and in little memory, as previews")
      ->free_on_resume();
}

void bind_pack_weights(cli::App& app, ModelOptions& options, const std::string& exception) {
  app.add_choice(
      "--pack_weights", options.load.pack_weights(),
      {{"auto", PackWeights::if_small}, {"on", PackWeights::on}, {"off", PackWeights::off}},
      "On a CPU, keep the UNet's weights in its kernels' layout too: faster, for more "
      "memory; auto: if they are at most a sixth of the machine's memory and 4 GB" +
          exception);
}

void bind_unet(cli::App& app, ModelOptions& options) {
  app.add_option("--unet", options.load.unet(),
                 "File with another UNet of the model's kind, .gguf or .safetensors, such as a "
                 "quantised one (default: the model's own)")
      ->free_on_resume();
}

void bind_base_precision(cli::App& app, ModelOptions& options) {
  app.add_choice(
      "--base_precision", options.load.base_precision(),
      {{"same", BasePrecision::same}, {"int8", BasePrecision::int8}, {"nf4", BasePrecision::nf4}},
      "How the UNet's frozen weights are kept: same as the other weights; int8, eight "
      "bits: a quarter of fp32's memory, faster on a CPU with AVX-512 VNNI, less exact; "
      "nf4, four bits: an eighth, unpacked for each use, so somewhat slower");
}

void bind_memory_limit(cli::App& app, ModelOptions& options) {
  app.add_bytes(
         "--memory_limit", options.memory_limit,
         "On a CPU, let the model's frozen weights lie in a file beside the output where the "
         "program would take more memory than this, such as 6GB: the same results, for the "
         "time of reading (0: no limit)")
      .free_on_resume();
}

StableDiffusionOptions load_beside(const std::string& folder, const ModelOptions& options) {
  auto load = options.load;
  if (options.memory_limit == 0) return load;
  auto place = std::filesystem::absolute(folder.empty() ? "." : folder);
  while (!std::filesystem::is_directory(place)) place = place.parent_path();
  return load.streaming({options.memory_limit, place.string()});
}

std::string model_arguments(const ModelOptions& options) {
  const auto& config = options.load.model_config();
  auto text = "--pretrained_model_name_or_path " + cli::format_word(options.path);
  if (!config.empty()) text += " --model_config " + cli::format_word(config);
  if (const auto& vae = options.load.vae(); !vae.empty()) {
    text += " --pretrained_vae_model_name_or_path " + cli::format_word(vae);
  }
  if (const auto& unet = options.load.unet(); !unet.empty()) {
    text += " --unet " + cli::format_word(unet);
  }
  if (options.load.allow_trailing_bytes()) text += " --allow_trailing_bytes";
  if (options.load.prediction_type()) {
    text +=
        " --prediction_type " + cli::word_of(prediction_types(), options.load.prediction_type());
  }
  return text;
}

}  // namespace sd
