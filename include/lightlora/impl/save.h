// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/save.h>

#include <lightlora/formats/native.h>
#include <lightlora/formats/safetensors.h>

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

}  // namespace lightlora
