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
    archive.write(name, set);
  }
  return archive;
}

LIGHTLORA_INLINE torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                            Patched& lora) {
  torch::NoGradGuard no_grad;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> values;
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
  }
  for (auto& [own, value] : values) own.copy_(value);
  return archive;
}

}  // namespace lightlora
