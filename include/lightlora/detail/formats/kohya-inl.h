// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/kohya.h>

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <lightlora/detail/formats/family.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/lycoris.h>
#include <lightlora/detail/formats/lycoris_methods.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/detail/formats/safetensors_data.h>
#include <lightlora/detail/formats/sha256.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

namespace lightlora::detail {

// What kohya's names of a component's layers begin with; SDXL numbers its text encoders.
inline std::string kohya_prefix(const std::string& component, bool xl) {
  if (component == "text_encoder_2") return "lora_te2_";
  if (component == "text_encoder") return xl ? "lora_te1_" : "lora_te_";
  return "lora_unet_";
}

// kohya's name of a layer. Errors: c10::Error for a layer whose name the readers cannot undo
inline std::string kohya_name(const std::string& component, const std::string& layer, bool xl) {
  std::string flat = layer;
  std::replace(flat.begin(), flat.end(), '.', '_');
  const auto back = component == "unet"            ? unet_layer_from_flat(flat)
                    : is_text_component(component) ? text_layer_from_flat(flat)
                                                   : std::nullopt;
  TORCH_CHECK(back == layer, "'", layer, "': expected a layer of Stable Diffusion's UNet ",
              "or text encoder, got one of '", component,
              "'; hint: kohya's format has no names for other models");
  return kohya_prefix(component, xl) + flat;
}

// diffusers refuses a text-encoder layer with some of its four attention projections only: the
// others are written as zeros, which change nothing.
inline void complete_attention(std::vector<PortableLayer>& layers) {
  std::map<std::pair<std::string, std::string>, const PortableLayer*> present;
  for (const auto& layer : layers) {
    if (is_text_component(layer.component)) present[{layer.component, layer.name}] = &layer;
  }
  std::vector<PortableLayer> missing;
  for (const auto& [key, layer] : present) {
    const auto& [component, name] = key;
    const std::size_t dot = name.rfind(".self_attn.");
    if (dot == name.npos) continue;
    for (const char* projection : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      const std::string other = name.substr(0, dot) + ".self_attn." + projection;
      const bool known = present.count({component, other}) > 0 ||
                         std::any_of(missing.begin(), missing.end(),
                                     [&, &component = component](const auto& added) {
                                       return added.name == other && added.component == component;
                                     });
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

// What sd-scripts calls a family, by which A1111 hides LoRAs of others. Adapters that fit several
// are taken to be for Stable Diffusion 1.x.
struct KohyaFamily {
  const char* version;
  const char* architecture;
  bool is_v2;
};

inline KohyaFamily kohya_family(const std::string& family) {
  if (family == "sdxl") return {"sdxl_base_v1-0", "stable-diffusion-xl-v1-base", false};
  if (family == "sd2") return {"sd_v2", "stable-diffusion-v2-512", true};
  return {"sd_v1", "stable-diffusion-v1", false};
}

// DoRA's lengths with as many dimensions as the layer's weight.
inline at::Tensor lycoris_magnitude(const at::Tensor& magnitude, std::size_t dimensions) {
  auto sizes = magnitude.sizes().vec();
  sizes.resize(dimensions, 1);
  return magnitude.reshape(sizes);
}

// The same for a model of v, which a file says only if it knows: `own` is what else is to be written.
inline KohyaFamily kohya_family(const std::string& family, const Metadata& own) {
  KohyaFamily known = kohya_family(family);
  const auto prediction = own.find("modelspec.prediction_type");
  if (prediction == own.end() || prediction->second != "v" || family == "sdxl") return known;
  known.version = known.is_v2 ? "sd_v2_v" : "sd_v1_v";
  if (known.is_v2) known.architecture = "stable-diffusion-v2-768-v";
  return known;
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

// Adds a layer of a method that LyCORIS has names for.
inline void add_lycoris(TensorMap& tensors, const std::string& component, const LayerState& layer,
                        at::ScalarType dtype, bool xl) {
  if (!layer.layer.is_vector()) require_plain(layer.layer, "kohya");
  const std::string name = kohya_name(component, lycoris_layer(layer.layer), xl) + ".";
  for (const auto& [key, value] : lycoris_tensors(layer, dtype)) {
    const bool stands_in = key == "w_norm" && layer.layer.part == "bias";
    if (stands_in) {
      tensors.emplace(name + key, value);
    } else {
      tensors[name + key] = value;
    }
  }
}

// Takes the layers that have names of their own out of the components.
inline TensorMap take_own_names(Components& components, at::ScalarType dtype, bool xl) {
  TensorMap tensors;
  for (auto& [component, state] : components) {
    AdapterState rest;
    for (auto& layer : state) {
      if (lycoris_names(layer)) {
        add_lycoris(tensors, component, layer, dtype, xl);
        continue;
      }
      if (!has_own_names(layer)) {
        rest.push_back(std::move(layer));
        continue;
      }
      require_plain(layer.layer, "kohya");
      const std::string name = kohya_name(component, layer.layer.name, xl) + ".";
      const auto dora = take_dora(layer);
      if (dora.magnitude.defined()) {
        tensors[name + "dora_scale"] = lycoris_magnitude(
            narrowed(dora.magnitude, dtype, layer.layer.name), 2 + layer.layer.kernel.size());
      }
      OwnTensors own = own_tensors(layer, dtype);
      // Nobody scales a LoKr without a rank.
      if (own.rank == 0) {
        own.tensors.at("lokr_w1") =
            narrowed(layer.trained.at("lokr_w1") * layer.scale, dtype, layer.layer.name);
      }
      for (const auto& [key, value] : own.tensors) tensors[name + key] = value;
      tensors[name + "alpha"] = at::full({}, own.rank == 0 ? 1 : own.alpha, at::kFloat);
    }
    state = std::move(rest);
  }
  return tensors;
}

LIGHTLORA_INLINE TensorMap to_kohya(const Components& all, at::ScalarType dtype) {
  Components components = all;
  const bool xl = detail::model_family(components) == "sdxl";
  TensorMap tensors = take_own_names(components, dtype, xl);
  auto layers = portable_layers(components, dtype);
  for (const auto& layer : layers) require_plain(layer.info, "kohya");
  complete_attention(layers);
  for (const auto& layer : layers) {
    const std::string name = kohya_name(layer.component, layer.name, xl);
    const int64_t rank = layer.down.size(0);
    tensors[name + ".lora_down.weight"] = layer.down;
    tensors[name + ".lora_up.weight"] = layer.up;
    if (layer.magnitude.defined()) {
      tensors[name + ".dora_scale"] =
          lycoris_magnitude(layer.magnitude, static_cast<std::size_t>(layer.down.dim()));
    }
    if (rank == 1) continue;
    const at::Tensor alpha = at::full({}, rank, at::kFloat), rounded = alpha.to(dtype);
    tensors[name + ".alpha"] =
        rounded.item<double>() == static_cast<double>(rank) ? rounded : alpha;
  }
  return tensors;
}

LIGHTLORA_INLINE void save_kohya(const std::string& path, const Components& components,
                                 at::ScalarType dtype, const Metadata& own) {
  const TensorMap tensors = to_kohya(components, dtype);
  int64_t rank = 0;
  bool convolutions = false;
  std::string method;  // of LyCORIS
  for (const auto& [name, tensor] : tensors) {
    for (const auto& [part, algorithm] : {std::pair(".hada_w1_b", "loha"),
                                          {".lokr_w1", "lokr"},
                                          {".oft_blocks", "diag-oft"},
                                          {".a1.weight", "glora"},
                                          {".on_input", "ia3"},
                                          {".diff", "full"}}) {
      if (name.find(part) != name.npos && !ends_with(name, ".diff_b")) method = algorithm;
    }
    if (ends_with(name, ".hada_w1_b") || ends_with(name, ".lokr_w2_b")) rank = tensor.size(0);
    if (ends_with(name, ".b2.weight")) rank = tensor.size(0);
    if (ends_with(name, ".oft_blocks")) rank = tensor.size(1);
    if (!ends_with(name, ".lora_down.weight")) continue;
    rank = tensor.size(0);
    convolutions = convolutions || (tensor.dim() == 4 && tensor.size(2) > 1);
  }
  const std::string dim = std::to_string(rank);
  const KohyaFamily family = kohya_family(detail::model_family(components), own);
  Metadata metadata{{"ss_v2", family.is_v2 ? "True" : "False"},
                    {"ss_base_model_version", family.version},
                    {"ss_network_module", "networks.lora"},
                    {"ss_network_dim", dim},
                    {"ss_network_alpha", dim + ".0"}};
  if (!method.empty()) {
    metadata["ss_network_module"] = "lycoris.kohya";
    metadata["ss_network_args"] = R"({"algo": ")" + method + R"("})";
  } else if (convolutions) {
    metadata["ss_network_args"] =
        R"({"conv_dim": ")" + dim + R"(", "conv_alpha": ")" + dim + R"("})";
  }
  // sd-scripts takes its hashes of its own fields, not of the model's specification.
  Metadata specification;
  for (const auto& [key, value] : own) {
    (starts_with(key, "modelspec.") ? specification : metadata)[key] = value;
  }
  metadata.merge(kohya_hashes(tensors, metadata));
  metadata["modelspec.sai_model_spec"] = "1.0.1";
  metadata["modelspec.architecture"] = std::string(family.architecture) + "/lora";
  metadata["modelspec.implementation"] = "diffusers";
  metadata["modelspec.title"] = "LoRA";
  for (const auto& [key, value] : specification) metadata[key] = value;
  save_safetensors(path, tensors, metadata);
}

}  // namespace lightlora::detail
