// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/formats/dialects.h>
#include <lightlora/detail/formats/diffusers.h>
#include <lightlora/detail/formats/kohya.h>
#include <lightlora/detail/formats/native.h>
#include <lightlora/detail/formats/peft.h>
#include <lightlora/patch.h>
#include <torch/serialize/archive.h>

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

/// Lets `torch::save(lora, path)` write the trained values of every set of a patched model.
/// Safetensors files (`lightlora::save`) also hold the options, and so can be loaded into a bare
/// model; this is for programs that keep everything in LibTorch's own archives.
torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const Patched& lora);

/// Lets `torch::load(lora, path)` read them back into a model that is patched in the same way.
/// Errors: c10::Error, before anything has changed, if a set is missing or a tensor has another
/// shape
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, Patched& lora);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/files-inl.h>
#endif
