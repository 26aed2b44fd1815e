// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lora_files/flags.h"

namespace lora_files {

/// Converts the inputs if they are of a transformer model, by names and matrices alone; says what
/// became of them. False, and nothing done, for others.
/// Errors: c10::Error for inputs of several families, and those of reading and writing
bool convert_transformer(const Flags& flags);

}  // namespace lora_files
