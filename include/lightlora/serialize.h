// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <torch/serialize/archive.h>

namespace lightlora {

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

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/serialize.h>
#endif
