// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/folder.h"

#include <lightlora/file_io.h>

#include <filesystem>

#include "models/weights.h"
#include "support/files/json_file.h"
#include "support/files/outputs.h"

namespace pretraining {
namespace {

// The version whose layout this follows.
const char* const diffusers_version = "0.35.0";

nlohmann::json with_class(nlohmann::json model, const std::string& name) {
  model["_class_name"] = name;
  model["_diffusers_version"] = diffusers_version;
  return model;
}

std::string weights_stem(const std::string& subfolder) {
  return subfolder.rfind("text_encoder", 0) == 0 ? "model" : "diffusion_pytorch_model";
}

}  // namespace

nlohmann::json vae_config(const nlohmann::json& config, double scaling_factor) {
  nlohmann::json model = with_class(config.at("vae").at("model"), "AutoencoderKL");
  model["scaling_factor"] = scaling_factor;
  return model;
}

nlohmann::json unet_config(const nlohmann::json& config) {
  return with_class(config.at("unet").at("model"), "UNet2DConditionModel");
}

bool is_sdxl(const nlohmann::json& config) { return config.contains("text_encoder_2"); }

nlohmann::json text_encoder_config(const nlohmann::json& config, int64_t vocab_size,
                                   const std::string& part) {
  nlohmann::json model = config.at(part).at("model");
  model["architectures"] = {part == "text_encoder" ? "CLIPTextModel"
                                                   : "CLIPTextModelWithProjection"};
  model["model_type"] = "clip_text_model";
  // transformers would else compute in the file's fp16, beside a UNet in fp32.
  model["dtype"] = "float32";
  model["vocab_size"] = vocab_size;
  model["bos_token_id"] = vocab_size - 2;
  model["eos_token_id"] = vocab_size - 1;
  model["pad_token_id"] = vocab_size - 1;
  return model;
}

nlohmann::json scheduler_config(const nlohmann::json& config) {
  return with_class(config.at("scheduler"), "DDIMScheduler");
}

void write_text(const std::string& path, const std::string& text) {
  lightlora::AtomicFile file(path);
  file.write(text);
  file.commit();
}

void save_part(const std::string& folder, const std::string& subfolder,
               const nlohmann::json& config, const lightlora::TensorMap& weights) {
  sd::make_folder(folder + "/" + subfolder);
  lightlora::TensorMap half;
  for (const auto& [name, tensor] : weights) half[name] = tensor.to(at::kHalf).contiguous();
  lightlora::save_safetensors(
      folder + "/" + subfolder + "/" + weights_stem(subfolder) + ".safetensors", half,
      {{"format", "pt"}});
  write_text(folder + "/" + subfolder + "/config.json", config.dump(2) + "\n");
}

void save_index(const std::string& folder, const nlohmann::json& config) {
  nlohmann::json index = with_class({}, "StableDiffusionPipeline");
  index["feature_extractor"] = {nullptr, nullptr};
  index["image_encoder"] = {nullptr, nullptr};
  index["requires_safety_checker"] = false;
  index["safety_checker"] = {nullptr, nullptr};
  index["scheduler"] = {"diffusers", "DDIMScheduler"};
  index["text_encoder"] = {"transformers", "CLIPTextModel"};
  index["tokenizer"] = {"transformers", "CLIPTokenizer"};
  index["unet"] = {"diffusers", "UNet2DConditionModel"};
  index["vae"] = {"diffusers", "AutoencoderKL"};
  if (is_sdxl(config)) {
    index["_class_name"] = "StableDiffusionXLPipeline";
    index.erase("safety_checker");
    index.erase("requires_safety_checker");
    // Trained with empty captions and not with zeros.
    index["force_zeros_for_empty_prompt"] = false;
    index["text_encoder_2"] = {"transformers", "CLIPTextModelWithProjection"};
    index["tokenizer_2"] = {"transformers", "CLIPTokenizer"};
    std::filesystem::copy(folder + "/tokenizer", folder + "/tokenizer_2",
                          std::filesystem::copy_options::overwrite_existing |
                              std::filesystem::copy_options::recursive);
  }
  write_text(folder + "/model_index.json", index.dump(2) + "\n");
  sd::make_folder(folder + "/scheduler");
  write_text(folder + "/scheduler/scheduler_config.json", scheduler_config(config).dump(2) + "\n");
}

void use_channels_last(torch::nn::Module& module) {
  for (at::Tensor& parameter : module.parameters()) {
    if (parameter.dim() == 4)
      parameter.set_data(parameter.contiguous(at::MemoryFormat::ChannelsLast));
  }
}

void with_config_name(const std::string& path, const std::function<void()>& work) {
  try {
    work();
  } catch (const nlohmann::json::exception& error) {
    TORCH_CHECK(false, "'", path,
                "': expected the fields that this stage needs: ", sd::words_of(error),
                "; hint: base.json has all of them");
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    TORCH_CHECK(false, message.rfind("'", 0) == 0 ? "" : "'" + path + "': ", message);
  }
}

void load_part(torch::nn::Module& module, const std::string& folder, const std::string& subfolder) {
  sd::load_weights(module, sd::find_weights(folder + "/" + subfolder, weights_stem(subfolder)));
}

sd::AutoencoderKL load_vae(const std::string& folder) {
  const std::string path = folder + "/vae/config.json";
  sd::AutoencoderKL vae(sd::AutoencoderKLOptions::from_json(sd::read_json_file(path), path));
  sd::load_weights(*vae, sd::find_weights(folder + "/vae", "diffusion_pytorch_model"),
                   sd::vae_legacy_name);
  return vae;
}

}  // namespace pretraining
