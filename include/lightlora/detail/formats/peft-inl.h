// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/peft.h>

#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/lycoris.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/peft_calls.h>
#include <lightlora/detail/formats/peft_config.h>
#include <lightlora/detail/formats/peft_methods.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
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

// What the configurations of all methods have in common.
inline JsonValue::Object peft_fields(const std::string& component, const std::string& type,
                                     const std::set<std::string>& modules) {
  return {{"auto_mapping", auto_mapping(component)},
          {"base_model_name_or_path", JsonValue()},
          {"inference_mode", true},
          {"modules_to_save", JsonValue()},
          {"peft_type", type},
          {"rank_pattern", JsonValue::Object{}},
          {"alpha_pattern", JsonValue::Object{}},
          {"target_modules", JsonValue::Array(modules.begin(), modules.end())},
          {"task_type", JsonValue()}};
}

inline JsonValue::Object lora_config(const std::string& component, int64_t rank, bool dora,
                                     const std::set<std::string>& modules) {
  auto config = peft_fields(component, "LORA", modules);
  const JsonValue::Object more{
      {"bias", "none"},     {"fan_in_fan_out", false}, {"init_lora_weights", true},
      {"lora_alpha", rank}, {"lora_dropout", 0.0},     {"r", rank},
      {"use_dora", dora},   {"use_rslora", false}};
  config.insert(config.end(), more.begin(), more.end());
  return config;
}

// The keys of PEFT's patterns for layers of these names. PEFT takes a key for a regular expression that
// the end of a path matches from a dot on, so "fc" would be "blk.fc" too.
inline std::map<std::string, std::string> pattern_keys(const std::set<std::string>& modules) {
  std::set<std::string> endings;
  for (const auto& module : modules) {
    for (std::size_t dot = module.find('.'); dot != module.npos; dot = module.find('.', dot + 1)) {
      endings.insert(module.substr(dot + 1));
    }
  }
  std::map<std::string, std::string> keys;
  for (const auto& module : modules) {
    std::string& key = keys[module];
    const bool plain = module.find_first_of("*+?[](){}|^$\\") == module.npos;
    if (plain && endings.count(module) == 0) {
      key = module;
      continue;
    }
    key = "^";
    for (const char c : module) {
      if (std::string_view(".*+?[](){}|^$\\").find(c) != std::string_view::npos) key += '\\';
      key += c;
    }
  }
  return keys;
}

// Of LoHa or LoKr: rank and alpha of the first layer, and what differs from them.
inline JsonValue::Object lycoris_config(const std::string& component, const LycorisMethod& method,
                                        const std::map<std::string, std::string>& names) {
  std::set<std::string> modules;
  JsonValue::Object ranks, alphas;
  const int64_t rank = method.ranks.begin()->second;
  const double alpha = method.alphas.begin()->second;
  for (const auto& item : names) modules.insert(item.second);
  const auto keys = pattern_keys(modules);
  for (const auto& [layer, module] : names) {
    const std::string& key = keys.at(module);
    if (method.ranks.at(layer) != rank) ranks.emplace_back(key, method.ranks.at(layer));
    if (method.alphas.at(layer) != alpha) alphas.emplace_back(key, method.alphas.at(layer));
  }
  JsonValue::Object config{{"alpha", alpha},        {"init_weights", true},
                           {"module_dropout", 0.0}, {"r", rank},
                           {"rank_dropout", 0.0},   {"use_effective_conv2d", false}};
  for (auto& field : peft_fields(component, method.type, modules)) {
    if (field.first == "rank_pattern") field.second = ranks;
    if (field.first == "alpha_pattern") field.second = alphas;
    config.push_back(std::move(field));
  }
  if (method.type != "LOKR") return config;
  config.emplace_back("decompose_both", method.decompose_both);
  config.emplace_back("decompose_factor", method.decompose_factor);
  config.emplace_back("rank_dropout_scale", false);
  return config;
}

// What PEFT calls the tensors of a layer, and the module that it is told to adapt.
struct PeftNames {
  std::string module, down, up, magnitude;
};

// Errors: c10::Error for a layer that PEFT has no adapter for; it would leave such tensors out with
// a warning, and compute the base model
inline PeftNames peft_names(const LayerInfo& layer, const std::string& name) {
  const std::string model = "base_model.model.";
  const auto refuse = [&](const char* what) {
    TORCH_CHECK(false, "'", name, "': expected a layer that PEFT can adapt, got ", what,
                "; hint: write the native format, or leave the layer out of the targets");
  };
  if (layer.type == "Embedding") {
    return {name, model + name + ".lora_embedding_A", model + name + ".lora_embedding_B", ""};
  }
  if (layer.type == "MultiheadAttention") {
    const std::string end = "." + layer.part;
    if (layer.part != "in_proj" && layer.part != "out_proj") {
      refuse("a MultiheadAttention with separate projections");
    }
    if (!ends_with(name, end)) refuse("a model that is a MultiheadAttention itself");
    const std::string attention = name.substr(0, name.size() - end.size());
    const std::string at =
        model + attention + (layer.part == "out_proj" ? ".base_layer.out_proj" : "");
    return {attention, at + ".lora_A.weight", at + ".lora_B.weight", ""};
  }
  if (!is_plain_type(layer.type)) refuse(layer.type.c_str());
  if (layer.groups != 1) refuse("a convolution with groups");
  const std::string at = model + name;
  return {name, at + ".lora_A.weight", at + ".lora_B.weight", at + ".lora_magnitude_vector"};
}

// PEFT adapts both projections of a MultiheadAttention: one without an adapter gets one that adds
// nothing.
inline void complete_projections(std::vector<PortableLayer>& layers) {
  std::set<std::string> present;
  for (const auto& layer : layers) present.insert(layer.name);
  std::vector<PortableLayer> missing;
  for (const auto& layer : layers) {
    if (layer.info.type != "MultiheadAttention") continue;
    const bool is_input = layer.info.part == "in_proj";
    const std::string parent = layer.name.substr(0, layer.name.rfind('.') + 1);
    PortableLayer other = layer;
    other.name = parent + (is_input ? "out_proj" : "in_proj");
    other.info.part = is_input ? "out_proj" : "in_proj";
    if (present.count(other.name) > 0) continue;
    const int64_t width = layer.down.size(1), rank = layer.down.size(0);
    other.down = at::zeros({rank, width}, layer.down.options());
    other.up = at::zeros({is_input ? width : 3 * width, rank}, layer.up.options());
    missing.push_back(std::move(other));
  }
  layers.insert(layers.end(), missing.begin(), missing.end());
}

inline void write_peft_folder(const std::filesystem::path& folder, const TensorMap& tensors,
                              const JsonValue::Object& fields) {
  std::filesystem::create_directories(folder);
  save_safetensors((folder / "adapter_model.safetensors").string(), tensors, {{"format", "pt"}});
  AtomicFile config((folder / "adapter_config.json").string());
  config.write(write_json(fields, {/*indent=*/2, /*sort_keys=*/true, /*ascii=*/true}) + "\n");
  config.commit();
}

// transformers' name of a layer, with or without `text_model.`.
inline std::string transformers_name(const std::string& component, std::string_view name,
                                     bool text_model) {
  if (is_text_component(component) && !text_model) take(name, "text_model.");
  return std::string(name);
}

// One of PEFT's methods beside LoRA, under its own names.
inline void save_peft_method(const std::filesystem::path& folder, const std::string& component,
                             const PeftMethod& method, const AdapterState& state,
                             at::ScalarType dtype, bool text_model) {
  TensorMap tensors;
  std::set<std::string> modules;
  AdapterState named = state;
  for (auto& layer : named) {
    layer.layer.name = transformers_name(component, layer.layer.name, text_model);
    modules.insert(layer.layer.name);
  }
  const JsonValue::Array targets(modules.begin(), modules.end());
  JsonValue::Object config = method.fields(named);
  if (method.layers) named = method.layers(std::move(named));
  for (const auto& layer : named) {
    for (auto& [key, value] : method_tensors(method, layer, dtype)) {
      tensors["base_model.model." + layer.layer.name + "." + key] = value;
    }
  }
  const bool starts = std::any_of(config.begin(), config.end(), [](const auto& field) {
    return field.first == "init_lora_weights";
  });
  if (!starts) config.emplace_back("init_weights", true);
  config.insert(config.end(), {{"auto_mapping", auto_mapping(component)},
                               {"base_model_name_or_path", JsonValue()},
                               {"inference_mode", true},
                               {"peft_type", method.type},
                               {"target_modules", targets},
                               {"task_type", JsonValue()}});
  write_peft_folder(folder, tensors, config);
}

// LoHa and LoKr as such.
inline void save_lycoris_method(const std::filesystem::path& folder, const std::string& component,
                                const AdapterState& state, const LycorisMethod& method,
                                at::ScalarType dtype, bool text_model) {
  TensorMap tensors;
  std::map<std::string, std::string> names;
  for (const auto& layer : state) {
    const auto name = transformers_name(component, layer.layer.name, text_model);
    names[layer.layer.name] = name;
    for (const auto& [key, tensor] : own_tensors(layer, dtype).tensors) {
      tensors["base_model.model." + name + "." + key] = tensor;
    }
  }
  write_peft_folder(folder, tensors, lycoris_config(component, method, names));
}

inline void save_peft_folder(const std::filesystem::path& folder, const std::string& component,
                             const AdapterState& state, at::ScalarType dtype, bool text_model) {
  if (const PeftMethod* method = peft_method_of(state)) {
    require_peft_calls(method->type, state);
    return save_peft_method(folder, component, *method, state, dtype, text_model);
  }
  if (const auto method = lycoris_method(state)) {
    require_peft_calls(method->type, state);
    return save_lycoris_method(folder, component, state, *method, dtype, text_model);
  }
  require_peft_calls("LORA", state);
  TensorMap tensors;
  std::set<std::string> modules;
  int64_t rank = 0;
  std::size_t magnitudes = 0;
  auto layers = portable_layers({{component, state}}, dtype);
  complete_projections(layers);
  for (const auto& layer : layers) {
    const auto names = peft_names(layer.info, transformers_name(component, layer.name, text_model));
    modules.insert(names.module);
    rank = layer.down.size(0);
    tensors[names.down] = without_padding_row(layer.down, layer.info.padding_row);
    const bool twice = layer.info.type == "MultiheadAttention" && layer.info.part == "out_proj";
    tensors[names.up] = twice ? layer.up / kPeftOutputProjection : layer.up;
    if (!layer.magnitude.defined()) continue;
    TORCH_CHECK(!names.magnitude.empty(), "'", layer.name, "': DoRA cannot be combined with ",
                layer.info.type,
                " in the peft format: PEFT computes it otherwise; hint: write the ",
                "native format");
    tensors[names.magnitude] = peft_magnitude(layer);
    ++magnitudes;
  }
  TORCH_CHECK(
      magnitudes == 0 || magnitudes == layers.size(), "'", folder.string(),
      "': expected DoRA in all layers or in none, as PEFT's configuration can say, got it in ",
      magnitudes, " of ", layers.size());
  write_peft_folder(folder, tensors, lora_config(component, rank, magnitudes > 0, modules));
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
