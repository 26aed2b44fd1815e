// SPDX-License-Identifier: Apache-2.0
#include "pipeline/model_index.h"

#include <c10/util/Exception.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The class that `model_index.json` names for each part with weights.
const std::map<std::string, std::string> known_classes{
    {"unet", "UNet2DConditionModel"},
    {"vae", "AutoencoderKL"},
    {"text_encoder", "CLIPTextModel"},
    {"text_encoder_2", "CLIPTextModelWithProjection"}};

// "unet": ["diffusers", "UNet2DConditionModel"]; [null, null] is a part that the model lacks.
bool has_part(const json& index, const std::string& name) {
  const auto entry = index.find(name);
  return entry != index.end() && entry->is_array() && entry->size() == 2 && !(*entry)[1].is_null();
}

// A refiner finishes the last steps of a base model's picture, reads one text encoder, and is told
// an aesthetic score in place of the target size.
void refuse_refiner(const json& index, const std::string& path) {
  const bool scores = index.value("requires_aesthetics_score", json()) == true;
  TORCH_CHECK(!scores && (has_part(index, "text_encoder") || !has_part(index, "text_encoder_2")),
              "'", path, "': expected a base model, got an SDXL refiner (",
              index.value("_class_name", json()).dump(),
              ", with one text encoder), which only finishes the pictures of a base model and is ",
              "not supported; hint: the base model draws without it");
}

void check_classes(const json& index, const std::string& path) {
  TORCH_CHECK(!index.contains("transformer") && !index.contains("text_encoder_3"), "'", path,
              "': expected Stable Diffusion 1.x, 2.x or XL, got ",
              index.value("_class_name", json()).dump());
  for (const auto& [name, known] : known_classes) {
    if (!has_part(index, name)) continue;
    const auto& got = index[name][1];
    TORCH_CHECK(got == known, "'", path, "': expected ", name, " to be ", known, ", got ",
                got.dump(), "; hint: Stable Diffusion 1.x, 2.x and XL are supported");
  }
}

}  // namespace

std::vector<std::string> ModelIndex::text_encoders() const {
  if (two_text_encoders) return {"text_encoder", "text_encoder_2"};
  return {"text_encoder"};
}

std::string ModelIndex::tokenizer_of(const std::string& text_encoder) {
  return text_encoder == "text_encoder_2" ? "tokenizer_2" : "tokenizer";
}

ModelIndex read_model_index(const std::string& folder) {
  TORCH_CHECK(
      fs::exists(folder), "'", folder,
      "': expected a diffusers folder or a file, got nothing there; hint: is the path right?");
  const std::string path = (fs::path(folder) / "model_index.json").string();
  TORCH_CHECK(fs::exists(path), "'", folder,
              "': expected a diffusers folder, got one without model_index.json; hint: the folder "
              "that holds unet/, vae/ and text_encoder/");
  const json index = read_json_file(path);
  refuse_refiner(index, path);
  check_classes(index, path);
  ModelIndex result;
  result.two_text_encoders = has_part(index, "text_encoder_2");
  const auto zeros = index.find("force_zeros_for_empty_prompt");
  if (zeros != index.end() && zeros->is_boolean()) {
    result.force_zeros_for_empty_prompt = zeros->get<bool>();
  }
  std::vector<std::string> parts{"unet", "vae"};
  for (const auto& encoder : result.text_encoders()) {
    parts.push_back(encoder);
    parts.push_back(ModelIndex::tokenizer_of(encoder));
  }
  parts.emplace_back("scheduler");
  for (const auto& part : parts) {
    const auto there = fs::path(folder) / part;
    TORCH_CHECK(fs::is_directory(there), "'", there.string(),
                "': expected a folder, got none; hint: an unfinished download of the model?");
  }
  return result;
}

void check_scheduler_class(const json& scheduler, const std::string& source) {
  const auto name = scheduler.value("_class_name", json());
  const bool edm = name.is_string() && name.get<std::string>().rfind("EDM", 0) == 0;
  TORCH_CHECK(!edm, "'", source, "': expected a model of noise or v, got one for ", name.dump(),
              ", whose inputs and outputs are scaled in another way (EDM), which is not supported");
  // Read as any other, such a file would give a schedule that the model has never seen.
  const bool flow = (name.is_string() && name.get<std::string>().rfind("FlowMatch", 0) == 0) ||
                    scheduler.value("use_flow_sigmas", json()) == true;
  TORCH_CHECK(!flow, "'", source, "': expected a model of noise or v, got one for ", name.dump(),
              ", of straight paths (flow matching), which is not supported");
}

}  // namespace sd
