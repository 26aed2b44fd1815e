// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lora_files/readers.h"

namespace lora_files {

/// What diffusers makes of a LoRA file of a transformer model; nothing if it is of no family whose
/// reader is known, or of several.
std::optional<Verdict> diffusers_of_transformer(const Contents& contents);

}  // namespace lora_files
