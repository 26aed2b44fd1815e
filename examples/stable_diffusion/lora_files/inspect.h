// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <string>

namespace lora_files {

/// Prints what a LoRA file or folder holds, for people: dialect, size, hash, metadata, and a table
/// of the layers by kind with their ranks and alphas.
void print_contents(const std::string& path, const lightlora::AdapterFile& contents);

/// The same for programs: one JSON object, with an entry for each layer.
void print_json(const std::string& path, const lightlora::AdapterFile& contents);

}  // namespace lora_files
