// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <lightlora/formats/native.h>
#include <lightlora/formats/safetensors.h>
#include <lightlora/state.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

inline bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

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
  if (component == "text_encoder") {
    return {".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"};
  }
  const bool attention_only = std::all_of(state.begin(), state.end(), [](const LayerState& layer) {
    return is_attention(layer.layer.name);
  });
  if (attention_only) return {".lora.down.weight", ".lora.up.weight"};
  return {".lora_A.weight", ".lora_B.weight"};
}

// Zero rows or columns up to a common rank: readers before diffusers 0.40 scale files of mixed
// ranks wrongly, and with alpha = rank the padding changes nothing.
inline at::Tensor pad_rank(const at::Tensor& factor, int64_t dim, int64_t rank) {
  const int64_t missing = rank - factor.size(dim);
  return missing == 0
             ? factor
             : at::constant_pad_nd(factor, dim == 0 ? std::vector<int64_t>{0, 0, 0, missing}
                                                    : std::vector<int64_t>{0, missing});
}

}  // namespace detail

/// The tensors of a file that diffusers' `load_lora_weights` takes as it is: classic factors with
/// the scale folded in, one rank for all layers, no alpha keys.
/// Shapes: down (rank, in) and up (out, rank); (rank, in, kh, kw) and (out, rank, 1, 1) for Conv2d
inline TensorMap to_diffusers(const Components& components) {
  TensorMap tensors;
  int64_t rank = 0;
  Components classic;
  for (const auto& [component, state] : components) {
    classic[component] = to_classic(state);
    for (const auto& layer : classic[component]) rank = std::max(rank, layer.options.rank());
  }
  for (const auto& [component, state] : classic) {
    const auto spelling = detail::spelling_of(component, state);
    for (const auto& layer : state) {
      at::Tensor down = detail::pad_rank(layer.trained.at("down"), 0, rank);
      at::Tensor up = detail::pad_rank(layer.trained.at("up"), 1, rank);
      const auto& kernel = layer.layer.kernel;
      if (!kernel.empty()) {
        std::vector<int64_t> sizes{rank, -1};
        sizes.insert(sizes.end(), kernel.begin(), kernel.end());
        down = down.reshape(sizes);
        std::vector<int64_t> ones{layer.layer.out, rank};
        ones.resize(2 + kernel.size(), 1);
        up = up.reshape(ones);
      }
      const std::string path = (component.empty() ? "" : component + ".") + layer.layer.name;
      tensors[path + spelling.down] = down.contiguous();
      tensors[path + spelling.up] = up.contiguous();
    }
  }
  return tensors;
}

/// Writes a file for diffusers' `load_lora_weights`. Errors: those of `save_safetensors`
inline void save_diffusers(const std::string& path, const Components& components) {
  save_safetensors(path, to_diffusers(components), {{"format", "pt"}});
}

namespace detail {

/// Where a tensor of a diffusers file belongs.
struct FactorKey {
  std::string component;
  std::string layer;
  bool is_up;
};

// All spellings that diffusers itself writes; they may be mixed in one file.
inline std::optional<FactorKey> parse_diffusers_key(const std::string& key) {
  static const std::pair<const char*, bool> endings[] = {
      {".lora.down.weight", false},  {".lora.up.weight", true},
      {".lora_A.weight", false},     {".lora_B.weight", true},
      {".lora_linear_layer.down.weight", false}, {".lora_linear_layer.up.weight", true}};
  for (const std::string component : {"unet", "text_encoder"}) {
    if (key.rfind(component + ".", 0) != 0) continue;
    for (const auto& [ending, is_up] : endings) {
      if (!ends_with(key, ending)) continue;
      const std::size_t start = component.size() + 1;
      const std::size_t length = key.size() - std::string(ending).size();
      if (length <= start) return std::nullopt;
      return FactorKey{component, key.substr(start, length - start), is_up};
    }
  }
  return std::nullopt;
}

}  // namespace detail

/// Reads a file with diffusers' names: alpha is the rank, so the scale is 1.
/// Errors: c10::Error naming the file and the tensor for a key of another dialect, a factor without
///         its partner, or two factors of different ranks
inline Components load_diffusers(const SafetensorsFile& file) {
  std::map<std::pair<std::string, std::string>, LayerState> layers;
  for (const auto& info : file.tensors()) {
    const auto key = detail::parse_diffusers_key(info.name);
    TORCH_CHECK(key, "'", file.path(), "': expected LoRA tensors with diffusers' names (",
                "unet.<layer>.lora.down.weight), got '", info.name, "' among ",
                file.tensors().size(), " tensors");
    const at::Tensor value = file.load(info.name).to(at::kFloat);
    LayerState& layer = layers[{key->component, key->layer}];
    layer.variant = ClassicAdapterImpl::kVariant;
    layer.layer.name = key->layer;
    if (!key->is_up && value.dim() > 2) layer.layer.kernel = value.sizes().slice(2).vec();
    TORCH_CHECK(value.dim() >= 2, "'", file.path(), "': tensor '", info.name,
                "': expected a matrix or a convolution's kernel, got ", value.sizes());
    const bool fresh = layer.trained.emplace(key->is_up ? "up" : "down", value.flatten(1)).second;
    TORCH_CHECK(fresh, "'", file.path(), "': layer '", key->layer,
                "': expected each factor once, got two spellings of one");
  }
  Components components;
  for (auto& [key, layer] : layers) {
    TORCH_CHECK(layer.trained.size() == 2, "'", file.path(), "': layer '", key.second,
                "': expected both factors, got only ", layer.trained.begin()->first,
                "; hint: the file is incomplete");
    const auto& down = layer.trained.at("down");
    const auto& up = layer.trained.at("up");
    TORCH_CHECK(down.size(0) == up.size(1), "'", file.path(), "': layer '", key.second,
                "': expected factors of one rank, got ", down.sizes(), " and ", up.sizes());
    layer.options.rank(down.size(0));
    layer.layer.in = down.size(1);
    layer.layer.out = up.size(0);
    components[key.first].push_back(layer);
  }
  return components;
}

/// Reads a LoRA file of any kind that this library knows. Errors: as the readers
inline Components load_lora(const std::string& path) {
  const SafetensorsFile file(path);
  return is_native(file) ? load_native(file) : load_diffusers(file);
}

}  // namespace lightlora
