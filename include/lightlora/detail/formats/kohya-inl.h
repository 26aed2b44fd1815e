// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/kohya.h>

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/detail/formats/safetensors_data.h>
#include <lightlora/detail/formats/sha256.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <vector>

namespace lightlora::detail {

// kohya's name of a layer. Errors: c10::Error for a layer whose name the readers cannot undo
inline std::string kohya_name(const std::string& component, const std::string& layer) {
  const std::string prefix = component == "text_encoder" ? "lora_te_" : "lora_unet_";
  std::string flat = layer;
  std::replace(flat.begin(), flat.end(), '.', '_');
  const auto back = component == "unet"           ? unet_layer_from_flat(flat)
                    : component == "text_encoder" ? text_layer_from_flat(flat)
                                                  : std::nullopt;
  TORCH_CHECK(back == layer, "'", layer, "': expected a layer of Stable Diffusion's UNet ",
              "or text encoder, got one of '", component,
              "'; hint: kohya's format has no names for other models");
  return prefix + flat;
}

// diffusers refuses a text-encoder layer with some of its four attention projections only: the
// others are written as zeros, which change nothing.
inline void complete_attention(std::vector<PortableLayer>& layers) {
  std::map<std::string, const PortableLayer*> present;
  for (const auto& layer : layers) {
    if (layer.component == "text_encoder") present[layer.name] = &layer;
  }
  std::vector<PortableLayer> missing;
  for (const auto& [name, layer] : present) {
    const std::size_t dot = name.rfind(".self_attn.");
    if (dot == name.npos) continue;
    for (const char* projection : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      const std::string other = name.substr(0, dot) + ".self_attn." + projection;
      const bool known = present.count(other) > 0 ||
                         std::any_of(missing.begin(), missing.end(),
                                     [&](const auto& added) { return added.name == other; });
      if (known) continue;
      TORCH_CHECK(!layer->magnitude.defined(), "'", name,
                  "': expected DoRA for all four projections of an attention, got none for ",
                  other);
      missing.push_back(
          {layer->component, other, at::zeros_like(layer->down), at::zeros_like(layer->up), {}});
    }
  }
  layers.insert(layers.end(), missing.begin(), missing.end());
}

// sd-scripts' two hashes: of all bytes behind the header, and of 64 KiB that begin at 1 MiB of the
// file as it is without the hashes (which is nothing in a smaller file).
inline Metadata kohya_hashes(const TensorMap& tensors, const Metadata& metadata) {
  constexpr std::size_t window_start = 0x100000, window_size = 0x10000;
  const auto entries = plan_safetensors(tensors);
  std::string bytes = safetensors_header_bytes(entries, metadata);
  const std::size_t header = bytes.size();
  for (const auto& entry : entries) {
    const at::Tensor dense = dense_on_cpu(tensors.at(entry.name));
    bytes.append(static_cast<const char*>(dense.const_data_ptr()), entry.end - entry.begin);
  }
  const std::string_view all = bytes;
  const auto window = all.substr(std::min(window_start, all.size()), window_size);
  return {{"sshs_model_hash", sha256(all.substr(header))},
          {"sshs_legacy_hash", sha256(window).substr(0, 8)}};
}

LIGHTLORA_INLINE TensorMap to_kohya(const Components& components, at::ScalarType dtype) {
  auto layers = portable_layers(components, dtype);
  complete_attention(layers);
  TensorMap tensors;
  for (const auto& layer : layers) {
    const std::string name = kohya_name(layer.component, layer.name);
    const int64_t rank = layer.down.size(0);
    tensors[name + ".lora_down.weight"] = layer.down;
    tensors[name + ".lora_up.weight"] = layer.up;
    if (layer.magnitude.defined()) {
      auto sizes = layer.magnitude.sizes().vec();
      sizes.resize(static_cast<std::size_t>(layer.down.dim()), 1);
      tensors[name + ".dora_scale"] = layer.magnitude.reshape(sizes);
    }
    if (rank == 1) continue;
    const at::Tensor alpha = at::full({}, rank, at::kFloat), rounded = alpha.to(dtype);
    tensors[name + ".alpha"] =
        rounded.item<double>() == static_cast<double>(rank) ? rounded : alpha;
  }
  return tensors;
}

LIGHTLORA_INLINE void save_kohya(const std::string& path, const Components& components,
                                 at::ScalarType dtype) {
  const TensorMap tensors = to_kohya(components, dtype);
  int64_t rank = 0;
  bool convolutions = false;
  for (const auto& [name, tensor] : tensors) {
    if (!ends_with(name, ".lora_down.weight")) continue;
    rank = tensor.size(0);
    convolutions = convolutions || (tensor.dim() == 4 && tensor.size(2) > 1);
  }
  const std::string dim = std::to_string(rank);
  Metadata metadata{{"ss_v2", "False"},
                    {"ss_base_model_version", "sd_v1"},
                    {"ss_network_module", "networks.lora"},
                    {"ss_network_dim", dim},
                    {"ss_network_alpha", dim + ".0"}};
  if (convolutions) {
    metadata["ss_network_args"] =
        R"({"conv_dim": ")" + dim + R"(", "conv_alpha": ")" + dim + R"("})";
  }
  metadata.merge(kohya_hashes(tensors, metadata));
  save_safetensors(path, tensors, metadata);
}

}  // namespace lightlora::detail
