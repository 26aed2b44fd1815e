// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/native.h>

#include <ATen/ops/stack.h>
#include <lightlora/detail/basis.h>
#include <lightlora/detail/formats/names.h>
#include <lightlora/detail/formats/native_fields.h>
#include <lightlora/file_io.h>
#include <lightlora/options-inl.h>
#include <lightlora/variants/classic_lora.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

// Layers whose tensors have equal shapes and options are stacked, because a header entry costs
// more bytes than the tensors of a rank-1 layer.
inline Metadata group_fields(const LayerState& layer) {
  const LoRAOptions& options = layer.options;
  Metadata fields{{"variant", layer.variant},
                  {"in", std::to_string(layer.layer.in)},
                  {"out", std::to_string(layer.layer.out)},
                  {"rank", std::to_string(options.rank())},
                  {"scale", exact_text(layer.scale)},
                  {"init", to_string(options.init())}};
  if (options.network_alpha()) fields["network_alpha"] = exact_text(*options.network_alpha());
  for (int64_t size : layer.layer.kernel) fields["kernel"] += std::to_string(size) + " ";
  if (layer.variant != ClassicAdapterImpl::kVariant) {
    fields["aux_in"] = std::to_string(options.aux_in());
    fields["aux_out"] = std::to_string(options.aux_out());
    fields["aux_seed"] = std::to_string(options.aux_seed());
    fields["aux_init"] = to_string(options.aux_init());
  }
  fields.merge(structure_fields(options));
  return fields;
}

inline constexpr int64_t kMostFeatures = 1'000'000;  // of a layer

inline LayerState layer_from_fields(const NativeFields& fields, const std::string& group) {
  const auto key = [&](const char* name) { return group + "." + name; };
  // Bases are made for these sizes: a file must not be able to ask for any amount of memory.
  const auto size = [&](const char* name) {
    const auto value = fields.number<int64_t>(key(name));
    TORCH_CHECK(value >= 1 && value <= kMostFeatures, "'", fields.path(), "': expected 1 to ",
                kMostFeatures, " as metadata '", key(name), "', got ", value);
    return value;
  };
  LayerState layer;
  layer.variant = fields.text(key("variant"));
  layer.layer.in = size("in");
  layer.layer.out = size("out");
  layer.scale = fields.number<double>(key("scale"));
  layer.options.rank(size("rank"));
  layer.options.init(parse_init(fields.text(key("init"))));
  if (fields.has(key("network_alpha"))) {
    layer.options.network_alpha(fields.number<double>(key("network_alpha")));
  }
  if (fields.has(key("kernel"))) {
    std::istringstream sizes(fields.text(key("kernel")));
    for (int64_t width = 0; sizes >> width;) layer.layer.kernel.push_back(width);
  }
  if (fields.has(key("aux_seed"))) {
    layer.options.aux_in(size("aux_in"));
    layer.options.aux_out(size("aux_out"));
    layer.options.aux_seed(fields.number<uint64_t>(key("aux_seed")));
    layer.options.aux_init(parse_aux_init(fields.text(key("aux_init"))));
  }
  for (const char* name : kStructureFields) {
    if (!fields.has(key(name))) continue;
    TORCH_CHECK(set_structure_field(layer.options, name, fields.text(key(name))), "'",
                fields.path(), "': expected a number in metadata '", key(name), "', got '",
                fields.text(key(name)), "'");
  }
  return layer;
}

}  // namespace detail

LIGHTLORA_INLINE bool is_native(const TensorFile& file) {
  const auto found = file.metadata().find("format");
  return found != file.metadata().end() && found->second == "lightlora";
}

LIGHTLORA_INLINE void save_native(const std::string& path, const Components& components,
                                  const Metadata& metadata) {
  Metadata all = metadata;
  all["format"] = "lightlora";
  all["format_version"] = "1";
  all["basis_version"] = std::to_string(kBasisVersion);
  TensorMap tensors;
  int64_t count = 0;
  for (const auto& [component, state] : components) {
    std::vector<std::pair<Metadata, std::vector<const LayerState*>>> groups;
    for (const auto& layer : state) {
      const Metadata fields = detail::group_fields(layer);
      auto found = std::find_if(groups.begin(), groups.end(),
                                [&](const auto& group) { return group.first == fields; });
      if (found == groups.end()) found = groups.insert(groups.end(), {fields, {}});
      found->second.push_back(&layer);
    }
    for (const auto& [fields, layers] : groups) {
      const std::string group = std::to_string(count++);
      for (const auto& [key, value] : fields) all[group + "." + key] = value;
      std::vector<std::string> names;
      std::map<std::string, std::vector<at::Tensor>> stacks;
      for (const auto* layer : layers) {
        names.push_back(layer->layer.name);
        for (const auto& [name, tensor] : layer->trained) stacks[name].push_back(tensor);
        for (const auto& [name, tensor] : layer->frozen) stacks[name].push_back(tensor);
      }
      all[group + ".layers"] = fold_names(names);
      all[group + ".component"] = component;
      for (const auto& [name, stack] : stacks) tensors[group + "." + name] = at::stack(stack);
    }
  }
  all["groups"] = std::to_string(count);
  save_safetensors(path, tensors, all);
}

LIGHTLORA_INLINE Components load_native(const TensorFile& file) {
  const detail::NativeFields fields(file.path(), file.metadata());
  TORCH_CHECK(is_native(file), "'", file.path(),
              "': expected a native lightlora file (metadata format = lightlora), got another ",
              "safetensors file");
  TORCH_CHECK(fields.text("format_version") == "1", "'", file.path(),
              "': expected format version 1, got ", fields.text("format_version"),
              "; hint: update lightlora");
  TORCH_CHECK(fields.number<int64_t>("basis_version") == kBasisVersion, "'", file.path(),
              "': expected basis version ", kBasisVersion, ", got ", fields.text("basis_version"),
              "; hint: this library cannot make the bases of that version");
  Components components;
  std::map<std::string, std::vector<std::string>> tensors_of;
  for (const auto& info : file.tensors()) {
    tensors_of[detail::component_at(info.name, 0)].push_back(info.name);
  }
  const auto groups = fields.number<int64_t>("groups");
  for (int64_t i = 0; i < groups; ++i) {
    const std::string group = std::to_string(i);
    const LayerState pattern = detail::layer_from_fields(fields, group);
    const auto names = unfold_names(fields.text(group + ".layers"));
    AdapterState& state = components[fields.text(group + ".component")];
    const std::size_t first = state.size();
    for (const auto& name : names) {
      state.push_back(pattern);
      state.back().layer.name = name;
    }
    for (const auto& full : tensors_of[group]) {
      const at::Tensor stack = file.load(full);
      const std::string name = full.substr(group.size() + 1);
      TORCH_CHECK(stack.dim() == 3 && stack.size(0) == static_cast<int64_t>(names.size()), "'",
                  file.path(), "': tensor '", full, "': expected (", names.size(),
                  ", rows, columns), got ", stack.sizes());
      const bool frozen = name == "down_aux" || name == "up_aux";
      for (std::size_t k = 0; k < names.size(); ++k) {
        auto& target = frozen ? state[first + k].frozen : state[first + k].trained;
        target[name] = stack[static_cast<int64_t>(k)].clone();
      }
    }
  }
  return components;
}

}  // namespace lightlora
