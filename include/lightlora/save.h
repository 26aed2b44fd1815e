// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/formats/native.h>
#include <lightlora/patch.h>

#include <string>

namespace lightlora {

/// Writes one adapter set of a patched model as a native file: trained values, options and seed;
/// `Bases::embedded` adds the frozen bases, which nobody needs to read the file here.
/// Errors: those of `save_safetensors`; nothing is left half-written
inline void save(const Patched& lora, const std::string& path, const std::string& name = "default",
                 Bases bases = Bases::by_seed) {
  save_native(path, {{"", lora->state(name, bases)}});
}

/// The adapters in a native file. A file with several components needs the name of one.
/// Errors: c10::Error if the file is not native or has no such component; the message lists them
inline AdapterState load_state(const std::string& path, const std::string& component = "") {
  auto components = load_native(SafetensorsFile(path));
  if (component.empty() && components.size() == 1) return components.begin()->second;
  std::string known;
  for (const auto& item : components) known += (known.empty() ? "'" : ", '") + item.first + "'";
  const auto found = components.find(component);
  TORCH_CHECK(found != components.end(), "'", path, "': expected a component '", component,
              "', got ", known);
  return found->second;
}

/// Puts the values of a native file into a patched model.
/// Errors: c10::Error, before anything has changed, unless the layers are exactly those of the set
inline void load(const Patched& lora, const std::string& path,
                 const std::string& name = "default") {
  lora->load_state(load_state(path), name);
}

}  // namespace lightlora
