// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/files.h>

#include <lightlora/detail/formats/dialects.h>
#include <lightlora/detail/formats/diffusers.h>
#include <lightlora/detail/formats/family.h>
#include <lightlora/detail/formats/file_errors.h>
#include <lightlora/detail/formats/kohya.h>
#include <lightlora/detail/formats/native.h>
#include <lightlora/detail/formats/peft.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/variants/variants.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

// In the order of Format.
inline constexpr const char* kFormatNames[] = {"native", "diffusers", "peft", "kohya"};

// An option that only some formats have is not passed over in silence.
inline void check_save_options(const std::string& path, const SaveOptions& options) {
  const auto refuse = [&](bool given, Format owner, const char* option) {
    TORCH_CHECK_VALUE(!given || options.format() == owner, "'", path, "': ", option,
                      " cannot be combined with the ", to_string(options.format()),
                      " format: only ", to_string(owner), " has it");
  };
  refuse(options.bases() == Bases::embedded, Format::native, "embedded bases");
  if (options.format() != Format::kohya) {
    refuse(!options.metadata().empty(), Format::native, "metadata");
  }
  refuse(!options.text_model(), Format::peft, "text_model(false)");
}

// The states with their bases and in the dtype that are asked for.
inline Components for_native(Components components, const SaveOptions& options) {
  for (auto& [name, state] : components) {
    for (auto& layer : state) {
      if (options.bases() == Bases::embedded) {
        layer = state_of(*make_adapter(layer), Bases::embedded);
      }
      if (!options.dtype()) continue;
      const VariantEntry* variant = entry_of(layer.variant);
      const bool product =
          variant && variant->canonical_values(layer.options, layer.frozen) == Canonical::factors;
      if (product) {
        balance(layer.trained.at("down"), layer.trained.at("up"), *options.dtype());
      }
      for (auto* tensors : {&layer.trained, &layer.frozen}) {
        for (auto& item : *tensors) {
          item.second = narrowed(item.second, *options.dtype(), layer.layer.name);
        }
      }
    }
  }
  return components;
}

inline void read_opened(const TensorFile& file, const std::string& component,
                        const ReadOptions& options, AdapterFile& contents) {
  if (is_native(file)) {
    contents.dialects.insert("native");
    contents.components = load_native(file);
    return;
  }
  DialectReader reader(file, component, options.ignore_unmatched());
  contents.dialects.insert(reader.dialects().begin(), reader.dialects().end());
  contents.embeddings.insert(reader.embeddings().begin(), reader.embeddings().end());
  contents.ignored.insert(contents.ignored.end(), reader.ignored().begin(), reader.ignored().end());
  for (auto& [name, state] : reader.components(configs_of(file))) {
    auto& all = contents.components[name];
    all.insert(all.end(), state.begin(), state.end());
  }
}

inline void read_adapter_file(const std::string& path, const std::string& component,
                              const ReadOptions& options, AdapterFile& contents) {
  const auto opened =
      open_tensors(path, SafetensorsOptions().allow_trailing_bytes(options.allow_trailing_bytes()));
  const TensorFile& file = *opened;
  contents.tensors += static_cast<int64_t>(file.tensors().size());
  contents.bytes += static_cast<int64_t>(std::filesystem::file_size(path));
  contents.metadata.insert(file.metadata().begin(), file.metadata().end());
  for (const auto& info : file.tensors()) contents.dtypes.insert(info.dtype_name);
  with_file_name(path, [&] { read_opened(file, component, options, contents); });
}

}  // namespace detail

LIGHTLORA_INLINE std::string to_string(Format format) {
  return detail::kFormatNames[static_cast<std::size_t>(format)];
}

LIGHTLORA_INLINE Format parse_format(const std::string& name) {
  std::string known;
  for (const Format format : {Format::native, Format::diffusers, Format::peft, Format::kohya}) {
    if (name == to_string(format)) return format;
    known += (known.empty() ? "" : ", ") + to_string(format);
  }
  TORCH_CHECK_VALUE(false, "expected one of ", known, ", got '", name, "'");
}

LIGHTLORA_INLINE void save(const Components& components, const std::string& path,
                           const SaveOptions& options) {
  detail::check_save_options(path, options);
  const auto dtype = options.dtype().value_or(at::kFloat);
  switch (options.format()) {
    case Format::native:
      return detail::save_native(path, detail::for_native(components, options), options.metadata());
    case Format::diffusers:
      return save_safetensors(path, detail::to_diffusers(components, dtype), {{"format", "pt"}});
    case Format::peft:
      return detail::save_peft(path, components, dtype, options.text_model());
    case Format::kohya:
      return detail::save_kohya(path, components, dtype, options.metadata());
  }
}

LIGHTLORA_INLINE Components without_vectors(Components components) {
  for (auto& [component, state] : components) {
    state.erase(std::remove_if(state.begin(), state.end(),
                               [](const LayerState& layer) { return layer.layer.is_vector(); }),
                state.end());
  }
  return components;
}

LIGHTLORA_INLINE void save(const Patched& lora, const std::string& path,
                           const SaveOptions& options) {
  const bool named = options.format() == Format::diffusers || options.format() == Format::kohya;
  const std::string component = options.component().value_or(named ? "unet" : "");
  detail::check_save_options(path, options);
  const Components components{{component, lora->state(options.set(), options.bases())}};
  save(components, path, SaveOptions(options).bases(Bases::by_seed));
}

LIGHTLORA_INLINE std::string model_family(const Components& components) {
  return detail::model_family(components);
}

LIGHTLORA_INLINE AdapterFile read_adapters(const std::string& path, const ReadOptions& options) {
  namespace fs = std::filesystem;
  AdapterFile contents;
  if (!fs::is_directory(path)) {
    detail::read_adapter_file(path, "", options, contents);
    return contents;
  }
  const fs::path folder(path);
  for (const char* name : {"adapter_model.safetensors", "pytorch_lora_weights.safetensors",
                           "pytorch_lora_weights.bin"}) {
    if (!fs::exists(folder / name)) continue;
    detail::read_adapter_file((folder / name).string(), "", options, contents);
    return contents;
  }
  for (const char* component : detail::kComponents) {
    const fs::path file = folder / component / "adapter_model.safetensors";
    if (fs::exists(file)) detail::read_adapter_file(file.string(), component, options, contents);
  }
  TORCH_CHECK(
      !contents.components.empty(), "'", path,
      "': expected a folder with adapter_model.safetensors (also in unet/ and text_encoder/)"
      " or pytorch_lora_weights.safetensors, got none of them");
  return contents;
}

LIGHTLORA_INLINE AdapterState read_state(const std::string& path, const std::string& component,
                                         const ReadOptions& options) {
  auto components = read_adapters(path, options).components;
  if (component.empty() && components.size() == 1) return components.begin()->second;
  std::string known;
  for (const auto& item : components) known += (known.empty() ? "'" : ", '") + item.first + "'";
  const auto found = components.find(component);
  TORCH_CHECK(found != components.end(), "'", path, "': expected a component '", component,
              "', got ", known);
  return found->second;
}

LIGHTLORA_INLINE void load(const Patched& lora, const std::string& path, const std::string& set,
                           const ReadOptions& options) {
  lora->assign(read_state(path, "", options), set);
}

LIGHTLORA_INLINE torch::serialize::OutputArchive& operator<<(
    torch::serialize::OutputArchive& archive, const Patched& lora) {
  for (const auto& name : lora->sets()) {
    torch::serialize::OutputArchive set(archive.compilation_unit());
    int64_t index = 0;
    for (const auto& item : lora->named_parameters(name)) {
      set.write(std::to_string(index++), item.value());
    }
    int64_t layer = 0;
    for (const auto& adapter : lora->adapters(name)) {
      const std::string prefix = "layer " + std::to_string(layer++) + " ";
      set.write(prefix + "scale", at::scalar_tensor(adapter->scale(), at::kDouble));
      for (const auto& item : adapter->frozen()) {
        if (!adapter->is_seeded(item.key())) set.write(prefix + item.key(), item.value());
      }
    }
    archive.write(name, set);
  }
  return archive;
}

namespace detail {

// Scales, and what is frozen and cannot be made again, of an archive that has them: the first ones
// did not.
inline void read_layers(torch::serialize::InputArchive& set, const Patched& lora,
                        const std::string& name,
                        std::vector<std::pair<torch::Tensor, torch::Tensor>>& values,
                        std::vector<std::pair<std::shared_ptr<Adapter>, double>>& scales) {
  int64_t layer = 0;
  for (const auto& adapter : lora->adapters(name)) {
    const std::string prefix = "layer " + std::to_string(layer++) + " ";
    torch::Tensor value;
    if (!set.try_read(prefix + "scale", value)) return;
    scales.emplace_back(adapter, value.item<double>());
    for (const auto& item : adapter->frozen()) {
      if (adapter->is_seeded(item.key())) continue;
      torch::Tensor basis;
      TORCH_CHECK(set.try_read(prefix + item.key(), basis) && basis.sizes() == item.value().sizes(),
                  "'", adapter->layer().name, "': expected a basis '", item.key(), "' ",
                  item.value().sizes(),
                  " in the archive, got another or none; hint: patch with the ",
                  "options and targets that were saved");
      values.emplace_back(item.value(), basis);
    }
  }
}

}  // namespace detail

LIGHTLORA_INLINE torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                            Patched& lora) {
  torch::NoGradGuard no_grad;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> values;
  std::vector<std::pair<std::shared_ptr<Adapter>, double>> scales;
  for (const auto& name : lora->sets()) {
    torch::serialize::InputArchive set;
    TORCH_CHECK(archive.try_read(name, set), "'", name,
                "': expected an adapter set of that name in the archive, got none; hint: patch "
                "with the names that were saved");
    int64_t index = 0;
    for (const auto& item : lora->named_parameters(name)) {
      torch::Tensor value;
      TORCH_CHECK(
          set.try_read(std::to_string(index++), value) && value.sizes() == item.value().sizes(),
          "'", item.key(), "': expected a tensor ", item.value().sizes(),
          " in the archive, got another or none; hint: patch with the options and targets ",
          "that were saved");
      values.emplace_back(item.value(), value);
    }
    detail::read_layers(set, lora, name, values, scales);
  }
  for (auto& [own, value] : values) own.copy_(value);
  for (auto& [adapter, scale] : scales) adapter->set_scale(scale);
  return archive;
}

}  // namespace lightlora
