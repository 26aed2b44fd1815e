// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>

#include <map>
#include <string>

namespace lightlora {

/// The adapters of several models ("unet", "text_encoder"; "" for a model of one's own).
using Components = std::map<std::string, AdapterState>;

/// Whether a file is of this library's own format.
bool is_native(const TensorFile& file);

/// Writes the compact native file: trained values stacked over layers, options as metadata, the
/// frozen bases only if the states hold them. Equal input gives equal bytes.
/// Dtypes: as in the states; cast them first for an fp16 file
/// Errors: those of `save_safetensors`
void save_native(const std::string& path, const Components& components,
                 const Metadata& metadata = {});

/// Reads a native file. Errors: c10::Error with the file and what is missing or malformed
Components load_native(const TensorFile& file);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/native-inl.h>
#endif
