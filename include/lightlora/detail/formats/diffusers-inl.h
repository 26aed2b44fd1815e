// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/diffusers.h>

#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/peft_calls.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <map>

namespace lightlora::detail {

inline bool is_attention(const std::string& path) {
  for (const char* name : {".to_q", ".to_k", ".to_v", ".to_out.0"}) {
    if (ends_with(path, name)) return true;
  }
  return false;
}

/// The two spellings of a diffusers file: what follows the module's path for down and for up.
struct Spelling {
  const char* down;
  const char* up;
};

// diffusers looks at one key of a component to choose a spelling for all of them, so a component
// must not mix two: a file with attention layers in one and the rest in the other loads partly.
inline Spelling spelling_of(const std::string& component, const AdapterState& state) {
  if (is_text_component(component)) {
    return {".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"};
  }
  const bool attention_only = std::all_of(state.begin(), state.end(), [](const LayerState& layer) {
    return is_attention(layer.layer.name);
  });
  if (attention_only) return {".lora.down.weight", ".lora.up.weight"};
  return {".lora_A.weight", ".lora_B.weight"};
}

LIGHTLORA_INLINE TensorMap to_diffusers(const Components& components, at::ScalarType dtype) {
  std::map<std::string, Spelling> spellings;
  for (const auto& [component, state] : components) {
    spellings[component] = spelling_of(component, state);
    require_peft_calls("LORA", state);  // diffusers computes with PEFT's layers
  }
  TensorMap tensors;
  for (const auto& layer : portable_layers(components, dtype)) {
    require_plain(layer.info, "diffusers");
    const auto& spelling = spellings.at(layer.component);
    const std::string prefix = layer.component.empty() ? "" : layer.component + ".";
    tensors[prefix + layer.name + spelling.down] = layer.down;
    tensors[prefix + layer.name + spelling.up] = layer.up;
    if (layer.magnitude.defined()) {
      tensors[prefix + layer.name + ".lora_magnitude_vector"] = peft_magnitude(layer);
    }
  }
  return tensors;
}

}  // namespace lightlora::detail
