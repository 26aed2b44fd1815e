// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "lora_files/translate.h"

namespace lora_files {

/// A file under the original model's layers throughout, as `unfused` is under diffusers'.
/// Errors: c10::Error for adapters that cannot be put together
TransformerFile fused(const TransformerFile& file);

/// diffusers' name of a component: "transformer", "text_encoder".
std::string component_name(const Family& family, int component);

}  // namespace lora_files
