// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/files.h>

#include <lightlora/detail/formats/native.h>
#include <lightlora/file_io.h>

#include <string>
#include <utility>
#include <vector>

namespace lightlora {

LIGHTLORA_INLINE void save(const Patched& lora, const std::string& path, const std::string& name,
                           Bases bases) {
  save_native(path, {{"", lora->state(name, bases)}});
}

LIGHTLORA_INLINE AdapterState load_state(const std::string& path, const std::string& component) {
  auto components = load_native(SafetensorsFile(path));
  if (component.empty() && components.size() == 1) return components.begin()->second;
  std::string known;
  for (const auto& item : components) known += (known.empty() ? "'" : ", '") + item.first + "'";
  const auto found = components.find(component);
  TORCH_CHECK(found != components.end(), "'", path, "': expected a component '", component,
              "', got ", known);
  return found->second;
}

LIGHTLORA_INLINE void load(const Patched& lora, const std::string& path, const std::string& name) {
  lora->load_state(load_state(path), name);
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
      if (!adapter->bases_from_weight()) continue;
      for (const auto& item : adapter->frozen()) set.write(prefix + item.key(), item.value());
    }
    archive.write(name, set);
  }
  return archive;
}

namespace detail {

// Scales and the bases that are made of the weight, of an archive that has them: the first ones did not.
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
    if (!adapter->bases_from_weight()) continue;
    for (const auto& item : adapter->frozen()) {
      torch::Tensor basis;
      TORCH_CHECK(set.try_read(prefix + item.key(), basis) && basis.sizes() == item.value().sizes(),
                  "'", adapter->layer().name, "': expected a basis '", item.key(), "' ",
                  item.value().sizes(), " in the archive, got another or none; hint: patch with the ",
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
    TORCH_CHECK(archive.try_read(name, set), "lightlora: expected the adapter set '", name,
                "' in the archive, got none; hint: patch with the names that were saved");
    int64_t index = 0;
    for (const auto& item : lora->named_parameters(name)) {
      torch::Tensor value;
      TORCH_CHECK(
          set.try_read(std::to_string(index++), value) && value.sizes() == item.value().sizes(),
          "lightlora: '", item.key(), "': expected a tensor ", item.value().sizes(),
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
