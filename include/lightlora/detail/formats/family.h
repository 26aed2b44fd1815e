// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/state.h>

#include <cstdint>
#include <string>

// Which Stable Diffusion a file of adapters is for.

namespace lightlora::detail {

// By the width of the text that a cross attention reads.
inline std::string family_of_width(int64_t width) {
  return width == 768 ? "sd1" : width == 1024 ? "sd2" : width == 2048 ? "sdxl" : "";
}

// Layers that only SDXL has: a second transformer block in one attention, and the embedding of
// sizes.
inline bool is_sdxl_layer(const std::string& name) {
  return starts_with(name, "add_embedding.") ||
         name.find(".transformer_blocks.1.") != std::string::npos;
}

/// "sd1", "sd2" or "sdxl"; empty if the layers fit several or none of them.
inline std::string model_family(const Components& components) {
  if (components.count("text_encoder_2") > 0) return "sdxl";
  std::string family;
  for (const auto& [component, state] : components) {
    for (const auto& layer : state) {
      const std::string& name = layer.layer.name;
      if (component == "unet" && is_sdxl_layer(name)) return "sdxl";
      const bool reads_text = ends_with(name, ".attn2.to_k") || ends_with(name, ".attn2.to_v");
      if (component == "unet" && reads_text) family = family_of_width(layer.layer.in);
      // CLIP-L is in two families, OpenCLIP's H in one.
      const bool wide = component == "text_encoder" && ends_with(name, ".self_attn.q_proj") &&
                        layer.layer.in == 1024;
      if (wide && family.empty()) family = "sd2";
    }
  }
  return family;
}

}  // namespace lightlora::detail
