// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <functional>

#include "models/ldm_names.h"
#include "models/open_clip.h"
#include "pipeline/pipeline.h"
#include "pipeline/single_file.h"
#include "pipeline/single_file_parts.h"
#include "pipeline/single_file_scheduler.h"
#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> text_encoders(const StableDiffusion& pipeline) {
  if (pipeline.text_encoders() == 2) return {"text_encoder", "text_encoder_2"};
  return {"text_encoder"};
}

// Configurations and the texts of tokenizers, by part.
struct Described {
  std::map<std::string, json> configs, tokenizers;
};

Described described(const StableDiffusion& pipeline) {
  Described result;
  const auto put = [&](const auto& config, const auto& texts) {
    for (const char* part : {"unet", "vae", "scheduler"}) result.configs[part] = config(part);
    for (const auto& part : text_encoders(pipeline)) {
      const auto tokenizer = ModelIndex::tokenizer_of(part);
      result.configs[part] = config(part);
      result.tokenizers[tokenizer] = texts(tokenizer);
    }
    if (pipeline.is_sdxl()) {
      const bool zeros = config("model_index").value("force_zeros_for_empty_prompt", true);
      result.configs["model_index"] = {{"force_zeros_for_empty_prompt", zeros}};
    }
  };
  const std::string& model = pipeline.folder();
  if (fs::is_directory(model)) {
    put(
        [&](const std::string& part) {
          return read_json_file(single_file::config_file(model, part));
        },
        [&](const std::string& name) {
          return single_file::texts_of_tokenizer(fs::path(model) / name);
        });
  } else {
    const auto& options = pipeline.options();
    const SingleFile file(
        model, options.model_config(),
        lightlora::SafetensorsOptions().allow_trailing_bytes(options.allow_trailing_bytes()));
    put([&](const std::string& part) { return file.config(part); },
        [&](const std::string& name) { return file.tokenizer_texts(name); });
  }
  return result;
}

// What a reader of the file cannot know from the weights alone.
lightlora::Metadata metadata_of(const StableDiffusion& pipeline) {
  const auto about = described(pipeline);
  const json configs(about.configs);
  auto metadata = prediction_metadata(configs["scheduler"]);
  metadata["format"] = "pt";
  metadata[single_file::kConfigKey] = configs.dump();
  for (const auto& part : text_encoders(pipeline)) {
    const bool is_clip = configs[part].value("vocab_size", single_file::kClipVocabulary) ==
                         single_file::kClipVocabulary;
    const auto tokenizer = ModelIndex::tokenizer_of(part);
    if (!is_clip)
      metadata[single_file::tokenizer_key(tokenizer)] = about.tokenizers.at(tokenizer).dump();
  }
  return metadata;
}

// The marks by which A1111 and ComfyUI know an SDXL model of v, and that its schedule ends in pure
// noise.
void mark_prediction(const SchedulerConfig& scheduler, lightlora::TensorMap& tensors) {
  const auto& values = scheduler.values();
  if (values.value("prediction_type", json()) != "v_prediction") return;
  tensors["v_pred"] = at::zeros({0});
  if (values.value("rescale_betas_zero_snr", json()) == true) tensors["ztsnr"] = at::zeros({0});
}

}  // namespace

void save_single_file(const StableDiffusion& pipeline, const std::string& path) {
  const auto dtype = pipeline.options().dtype();
  lightlora::TensorMap tensors;
  const auto add = [&](const torch::nn::Module& module, const std::string& prefix,
                       const std::function<std::string(const std::string&)>& original) {
    for (const auto& item : module.named_parameters()) {
      tensors[prefix + original(item.key())] = item.value().detach().to(dtype);
    }
  };
  const auto unet = pipeline.unet();
  const auto vae = pipeline.vae();
  add(*unet, kLdmUnet, [&](const auto& name) { return ldm_unet_name(name, unet->options); });
  add(*vae, kLdmVae, [&](const auto& name) { return ldm_vae_name(name, vae->options); });
  const bool xl = pipeline.is_sdxl();
  for (size_t i = 0; i < pipeline.text_encoders(); ++i) {
    const auto encoder = pipeline.text_encoder(i);
    // OpenCLIP's encoders have the exact gelu, CLIP's the quick one.
    if (i == 1 || (!xl && encoder->options.hidden_act() == CLIPActivation::gelu)) {
      tensors.merge(to_open_clip(*encoder, xl ? kSgmOpenClip : kLdmOpenClip, dtype));
    } else {
      add(*encoder, xl ? kSgmTextEncoder : kLdmTextEncoder, [](const auto& name) { return name; });
    }
  }
  for (auto& [name, tensor] : tensors) {
    const bool attention =
        single_file::begins(name, kLdmVae) && name.find(".attn_1.") != std::string::npos;
    if (attention && tensor.dim() == 2) tensor = tensor.unsqueeze(2).unsqueeze(3);
  }
  if (xl) mark_prediction(pipeline.scheduler_config(), tensors);
  lightlora::save_safetensors(path, tensors, metadata_of(pipeline));
}

}  // namespace sd
