// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/native.h>

#include <ATen/ops/stack.h>
#include <lightlora/detail/basis.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/names.h>
#include <lightlora/detail/formats/native_fields.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/file_io.h>
#include <lightlora/variants/variants.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace lightlora::detail {

// Version 1 of the format says these of every variant that may make bases, also of those that have
// none of this kind.
inline constexpr std::pair<const char*, const char*> kBasisFields[] = {
    {"aux_in", "100"}, {"aux_out", "50"}, {"aux_seed", "0"}, {"aux_init", "orthogonal"}};

// What nobody has registered may be anything.
inline bool makes_bases(const LayerState& layer) {
  const VariantEntry* entry = entry_of(layer.variant);
  return entry == nullptr || entry->makes_bases;
}

inline bool trains_whole(const LayerState& layer) {
  const VariantEntry* entry = entry_of(layer.variant);
  return entry != nullptr && entry->trains_whole;
}

// And takes tensors of these names as frozen, unless the group lists others.
inline const std::set<std::string>& usual_frozen() {
  static const std::set<std::string> names{"down_aux", "up_aux"};
  return names;
}

// The variant's own options: those that are not at their default, and what version 1 always says.
inline Metadata own_fields(const LayerState& layer) {
  Metadata fields;
  const VariantEntry* entry = entry_of(layer.variant);
  if (makes_bases(layer)) {
    for (const auto& [name, value] : kBasisFields) fields[name] = value;
    if (entry) {
      for (const auto& option : entry->options) {
        if (fields.count(option.name) > 0) fields[option.name] = option.usual;
      }
    }
  }
  for (const auto& [name, value] : layer.options.own()) fields[name] = value;
  return fields;
}

// The names of frozen tensors, if a reader would take them, or the trained ones, for something
// else.
inline Metadata frozen_field(const LayerState& layer) {
  std::set<std::string> frozen;
  for (const auto& item : layer.frozen) frozen.insert(item.first);
  std::set<std::string> guessed;
  for (const auto* tensors : {&layer.trained, &layer.frozen}) {
    for (const auto& item : *tensors) {
      if (usual_frozen().count(item.first) > 0) guessed.insert(item.first);
    }
  }
  if (frozen == guessed) return {};
  std::string names;
  for (const auto& name : frozen) names += (names.empty() ? "" : " ") + name;
  return {{"frozen", names}};
}

// Layers whose tensors have equal shapes and options are stacked, because a header entry costs
// more bytes than the tensors of a rank-1 layer.
inline Metadata group_fields(const LayerState& layer) {
  const LoRAOptions& options = layer.options;
  TORCH_CHECK(layer.layer.in > 0 && layer.layer.out > 0, "'", layer.layer.name,
              "': expected a layer whose sizes are known, got ", layer.layer.in, " -> ",
              layer.layer.out, ", which the file that it is from does not say; hint: patch the ",
              "model with it, and save that");
  Metadata fields{{"variant", layer.variant},
                  {"in", std::to_string(layer.layer.in)},
                  {"out", std::to_string(layer.layer.out)},
                  {"rank", std::to_string(options.rank())},
                  {"scale", exact_text(layer.scale)},
                  {"init", to_string(options.init())}};
  if (options.network_alpha()) fields["network_alpha"] = exact_text(*options.network_alpha());
  for (int64_t size : layer.layer.kernel) fields["kernel"] += std::to_string(size) + " ";
  // What a plain layer's name and shapes do not tell the writers of other formats.
  const std::string& type = layer.layer.type;
  if (!is_plain_type(type)) fields["type"] = type;
  if (!is_plain_type(type) && !layer.layer.part.empty()) fields["part"] = layer.layer.part;
  if (layer.layer.groups != 1) fields["groups"] = std::to_string(layer.layer.groups);
  for (const auto& option : layer.layer.uncommon) fields["uncommon"] += option + " ";
  if (layer.layer.padding_row >= 0) {
    fields["padding_row"] = std::to_string(layer.layer.padding_row);
  }
  if (options.dora()) fields["dora"] = "1";
  if (options.dora_inputs()) fields["dora_inputs"] = "1";
  fields.merge(own_fields(layer));
  fields.merge(frozen_field(layer));
  return fields;
}

inline std::vector<int64_t> kernel_from_fields(const NativeFields& fields, const std::string& key,
                                               int64_t inputs) {
  std::vector<int64_t> kernel;
  if (!fields.has(key)) return kernel;
  int64_t values = 1;
  std::istringstream sizes(fields.text(key));
  for (int64_t width = 0; sizes >> width;) {
    TORCH_CHECK(width >= 1 && width <= kMostKernel && kernel.size() < 3, "'", fields.path(),
                "': expected up to 3 sizes from 1 to ", kMostKernel, " as metadata '", key,
                "', got ", shown(fields.text(key)));
    kernel.push_back(width);
    values *= width;
  }
  TORCH_CHECK(inputs % values == 0, "'", fields.path(), "': expected ", inputs,
              " inputs that the kernel divides, got a kernel of ", values, " in metadata '", key,
              "'");
  return kernel;
}

// What the layer's call is, for the writers of other formats.
inline void read_call(const NativeFields& fields, const std::string& group, LayerInfo& layer) {
  if (fields.has(group + ".uncommon")) {
    std::istringstream options(fields.text(group + ".uncommon"));
    for (std::string option; options >> option;) {
      TORCH_CHECK(option.size() <= 32 && layer.uncommon.size() < 8, "'", fields.path(),
                  "': expected up to 8 names of options as metadata '", group, ".uncommon', got ",
                  shown(fields.text(group + ".uncommon")));
      layer.uncommon.push_back(option);
    }
  }
  const std::string key = group + ".padding_row";
  if (!fields.has(key)) return;
  layer.padding_row = fields.number<int64_t>(key);
  const bool within = layer.padding_row >= 0 && layer.padding_row < layer.in;
  TORCH_CHECK(within && layer.type == "Embedding", "'", fields.path(), "': expected one of the ",
              layer.in, " rows of an Embedding as metadata '", key, "', got ", layer.padding_row,
              "; hint: is the file damaged?");
}

// The values of the frozen bases that a layer of these options has; more than it has is no harm.
inline int64_t basis_values(const LayerState& layer) {
  int64_t sum = 0;
  const auto& own = layer.options.own();
  for (const auto& [name, side] :
       {std::pair("aux_in", layer.layer.in), std::pair("aux_out", layer.layer.out)}) {
    const auto found = own.find(name);
    int64_t count = layer.options.rank();
    if (found != own.end()) read_number(found->second, count);
    sum += saturating_product({std::min(count, side), side}) / 2;
  }
  return sum;
}

// A layer may name sizes that are far larger than the few values it holds.
class NativeLimits {
 public:
  explicit NativeLimits(const TensorFile& file)
      : where_("'" + file.path() + "': "), made_(bytes_of(file)) {}

  // Before the group's layers are made.
  void check(const LayerState& layer, std::size_t count) {
    layers_ += count;
    TORCH_CHECK(count > 0 && layers_ <= kMostLayers, where_, "expected 1 to ", kMostLayers,
                " layers, got ", count == 0 ? "a group of none" : "more");
    const auto layers = static_cast<int64_t>(count);
    if (layer.frozen.empty() && makes_bases(layer)) {
      const int64_t values = basis_values(layer);
      bases_ += std::min(saturating_product({values, layers}), kMostBases);
      TORCH_CHECK(values <= kMostBasis && bases_ <= kMostBases, where_,
                  "expected frozen bases of at most ", kMostBasis, " values in a layer and ",
                  kMostBases, " in all, got more; hint: is the file damaged?");
    }
    made_.spend(where_, {layers, layer.options.rank(), layer.layer.in});
    made_.spend(where_, {layers, layer.options.rank(), layer.layer.out});
    if (trains_whole(layer)) made_.spend(where_, {layers, layer.layer.in, layer.layer.out});
  }

 private:
  static uint64_t bytes_of(const TensorFile& file) {
    uint64_t bytes = 0;
    for (const auto& info : file.tensors()) bytes += info.end - info.begin;
    return bytes;
  }

  std::string where_;
  ValueBudget made_;
  std::size_t layers_ = 0;
  int64_t bases_ = 0;
};

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
  const auto finite = [&](const char* name) {
    const auto value = fields.number<double>(key(name));
    TORCH_CHECK(std::isfinite(value), "'", fields.path(),
                "': expected a finite number as metadata '", key(name), "', got ", value);
    return value;
  };
  layer.scale = finite("scale");
  layer.options.rank(size("rank"));
  layer.options.init(parse_init(fields.text(key("init"))));
  if (fields.has(key("network_alpha"))) {
    layer.options.network_alpha(finite("network_alpha"));
  }
  layer.layer.kernel = kernel_from_fields(fields, key("kernel"), layer.layer.in);
  if (fields.has(key("type"))) layer.layer.type = fields.text(key("type"));
  if (fields.has(key("part"))) layer.layer.part = fields.text(key("part"));
  if (fields.has(key("groups"))) layer.layer.groups = size("groups");
  read_call(fields, group, layer.layer);
  layer.layer.lookup = layer.layer.type == "Embedding" || layer.layer.type == "EmbeddingBag";
  layer.options.dora(fields.has(key("dora")) && fields.text(key("dora")) != "0");
  layer.options.dora_inputs(fields.has(key("dora_inputs")) &&
                            fields.text(key("dora_inputs")) != "0");
  if (const VariantEntry* entry = entry_of(layer.variant)) {
    for (const auto& option : entry->options) {
      const std::string name = group + "." + option.name;
      if (fields.has(name)) layer.options.own()[option.name] = fields.text(name);
    }
    layer.options.own(entry->canonical(layer.options.own(), fields.path()));
  }
  return layer;
}

// The names of the group's frozen tensors.
inline std::set<std::string> frozen_names(const NativeFields& fields, const std::string& group) {
  if (!fields.has(group + ".frozen")) return usual_frozen();
  std::istringstream names(fields.text(group + ".frozen"));
  std::set<std::string> frozen;
  for (std::string name; names >> name;) frozen.insert(name);
  return frozen;
}

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
      const Metadata fields = group_fields(layer);
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

// Adds the layers of one group, whose tensors are stacked.
inline void load_group(const TensorFile& file, const std::string& group,
                       const std::vector<std::string>& tensors,
                       const std::vector<std::string>& names, const LayerState& pattern,
                       const std::set<std::string>& frozen, AdapterState& state) {
  std::vector<at::Tensor> stacks;
  for (const auto& full : tensors) {
    stacks.push_back(file.load(full));
    const at::Tensor& stack = stacks.back();
    TORCH_CHECK(stack.dim() >= 1 && stack.size(0) == static_cast<int64_t>(names.size()) &&
                    stack.numel() > 0,
                "'", file.path(), "': tensor ", shown(full), ": expected (", names.size(),
                ", ...), a tensor for each layer, got ", stack.sizes());
  }
  TORCH_CHECK(!stacks.empty(), "'", file.path(), "': group ", group,
              ": expected the tensors of its layers, got none");
  for (std::size_t k = 0; k < names.size(); ++k) {
    state.push_back(pattern);
    state.back().layer.name = names[k];
    for (std::size_t i = 0; i < stacks.size(); ++i) {
      const std::string name = tensors[i].substr(group.size() + 1);
      auto& target = frozen.count(name) > 0 ? state.back().frozen : state.back().trained;
      target[name] = stacks[i][static_cast<int64_t>(k)].clone();
    }
  }
}

LIGHTLORA_INLINE Components load_native(const TensorFile& file) {
  const NativeFields fields(file.path(), file.metadata());
  TORCH_CHECK(is_native(file), "'", file.path(),
              "': expected a native lightlora file (metadata format = lightlora), got another ",
              "safetensors file");
  TORCH_CHECK(fields.text("format_version") == "1", "'", file.path(),
              "': expected format version 1, got ", shown(fields.text("format_version")),
              "; hint: update lightlora");
  TORCH_CHECK(fields.number<int64_t>("basis_version") == kBasisVersion, "'", file.path(),
              "': expected basis version ", kBasisVersion, ", got ",
              shown(fields.text("basis_version")),
              "; hint: this library cannot make the bases of that version");
  Components components;
  std::map<std::string, std::vector<std::string>> tensors_of;
  for (const auto& info : file.tensors()) {
    tensors_of[component_at(info.name, 0)].push_back(info.name);
  }
  const auto groups = fields.number<int64_t>("groups");
  TORCH_CHECK(groups >= 1, "'", file.path(), "': expected at least one group of layers, got ",
              groups);
  NativeLimits limits(file);
  for (int64_t i = 0; i < groups; ++i) {
    const std::string group = std::to_string(i);
    const auto names = unfold_names(fields.text(group + ".layers"));
    const LayerState pattern = layer_from_fields(fields, group);
    limits.check(pattern, names.size());
    const std::string& component = fields.text(group + ".component");
    if (!component.empty()) path_component(component, file.path());
    AdapterState& state = components[component];
    load_group(file, group, tensors_of[group], names, pattern, frozen_names(fields, group), state);
  }
  return components;
}

}  // namespace lightlora::detail
