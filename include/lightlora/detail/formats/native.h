// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>

#include <string>

namespace lightlora::detail {

// Whether a file is of this library's own format.
bool is_native(const TensorFile& file);

// Writes the compact native file: trained values stacked over layers, options as metadata, what is
// frozen only if the states hold it. Equal input gives equal bytes.
// Dtypes: as in the states; cast them first for an fp16 file
void save_native(const std::string& path, const Components& components,
                 const Metadata& metadata = {});

// Reads a native file. Errors: c10::Error with the file and what is missing or malformed
Components load_native(const TensorFile& file);

}  // namespace lightlora::detail

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/native-inl.h>
#endif
