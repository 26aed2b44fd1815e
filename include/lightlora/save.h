// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/patch.h>

#include <string>

namespace lightlora {

/// Writes one adapter set of a patched model as a native file: trained values, options and seed;
/// `Bases::embedded` adds the frozen bases, which nobody needs to read the file here.
/// Errors: those of `save_safetensors`; nothing is left half-written
void save(const Patched& lora, const std::string& path, const std::string& name = "default",
          Bases bases = Bases::by_seed);

/// The adapters in a native file. A file with several components needs the name of one.
/// Errors: c10::Error if the file is not native or has no such component; the message lists them
AdapterState load_state(const std::string& path, const std::string& component = "");

/// Puts the values of a native file into a patched model.
/// Errors: c10::Error, before anything has changed, unless the layers are exactly those of the set
void load(const Patched& lora, const std::string& path, const std::string& name = "default");

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/save.h>
#endif
