// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/peft.h>

#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

namespace lightlora::detail {

// The classes that PEFT's AutoPeftModel looks for.
inline JsonValue auto_mapping(const std::string& component) {
  using Object = JsonValue::Object;
  if (component == "unet") {
    return Object{{"base_model_class", "UNet2DConditionModel"},
                  {"parent_library", "diffusers.models.unets.unet_2d_condition"}};
  }
  if (is_text_component(component)) {
    return Object{{"base_model_class",
                   component == "text_encoder_2" ? "CLIPTextModelWithProjection" : "CLIPTextModel"},
                  {"parent_library", "transformers.models.clip.modeling_clip"}};
  }
  return {};
}

inline std::string peft_config(const std::string& component, int64_t rank, bool dora,
                               std::vector<std::string> modules) {
  std::sort(modules.begin(), modules.end());
  JsonValue::Array targets(modules.begin(), modules.end());
  const JsonValue::Object config{{"auto_mapping", auto_mapping(component)},
                                 {"base_model_name_or_path", JsonValue()},
                                 {"bias", "none"},
                                 {"fan_in_fan_out", false},
                                 {"inference_mode", true},
                                 {"init_lora_weights", true},
                                 {"lora_alpha", rank},
                                 {"lora_dropout", 0.0},
                                 {"modules_to_save", JsonValue()},
                                 {"peft_type", "LORA"},
                                 {"r", rank},
                                 {"rank_pattern", JsonValue::Object{}},
                                 {"alpha_pattern", JsonValue::Object{}},
                                 {"target_modules", std::move(targets)},
                                 {"task_type", JsonValue()},
                                 {"use_dora", dora},
                                 {"use_rslora", false}};
  return write_json(config, {/*indent=*/2, /*sort_keys=*/true, /*ascii=*/true});
}

inline void save_peft_folder(const std::filesystem::path& folder, const std::string& component,
                             const AdapterState& state, at::ScalarType dtype, bool text_model) {
  TensorMap tensors;
  std::vector<std::string> modules;
  int64_t rank = 0;
  std::size_t magnitudes = 0;
  for (const auto& layer : portable_layers({{component, state}}, dtype)) {
    std::string_view name = layer.name;
    if (is_text_component(component) && !text_model) take(name, "text_model.");
    modules.emplace_back(name);
    rank = layer.down.size(0);
    tensors["base_model.model." + modules.back() + ".lora_A.weight"] = layer.down;
    tensors["base_model.model." + modules.back() + ".lora_B.weight"] = layer.up;
    if (!layer.magnitude.defined()) continue;
    tensors["base_model.model." + modules.back() + ".lora_magnitude_vector"] =
        peft_magnitude(layer);
    ++magnitudes;
  }
  TORCH_CHECK(
      magnitudes == 0 || magnitudes == modules.size(), "'", folder.string(),
      "': expected DoRA in all layers or in none, as PEFT's configuration can say, got it in ",
      magnitudes, " of ", modules.size());
  std::filesystem::create_directories(folder);
  save_safetensors((folder / "adapter_model.safetensors").string(), tensors, {{"format", "pt"}});
  AtomicFile config((folder / "adapter_config.json").string());
  config.write(peft_config(component, rank, magnitudes > 0, std::move(modules)) + "\n");
  config.commit();
}

LIGHTLORA_INLINE void save_peft(const std::string& folder, const Components& components,
                                at::ScalarType dtype, bool text_model) {
  // A component's name comes from the file that was read, and becomes a folder's.
  for (const auto& item : components) {
    if (!item.first.empty()) path_component(item.first, folder);
  }
  for (const auto& [component, state] : components) {
    save_peft_folder(std::filesystem::path(folder) / component, component, state, dtype,
                     text_model);
  }
}

}  // namespace lightlora::detail
