// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <string>
#include <vector>

namespace lora_files {

/// Prints what a LoRA file or folder holds, for people: dialect, size, hash, metadata, and a table
/// of the layers by kind with their ranks and alphas.
void print_contents(const std::string& path, const lightlora::AdapterFile& contents);

/// The same for programs: one JSON object, with an entry for each layer.
void print_json(const std::string& path, const lightlora::AdapterFile& contents);

/// The same, as text or JSON, of a file that its names alone describe: one of a transformer model, of
/// the kinds `families`. False, and nothing printed, if it has no layers.
/// Errors: c10::Error for a file that is none of tensors
bool print_names(const std::string& path, const std::vector<std::string>& families,
                 bool allow_trailing_bytes, bool json);

}  // namespace lora_files
