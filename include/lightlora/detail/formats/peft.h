// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/state.h>

#include <string>

namespace lightlora::detail {

// PEFT's folders are written here; dialects.h reads them, as it reads every other program's.

// Writes a folder for PEFT's `PeftModel.from_pretrained`: classic factors with the scale folded
// in, one rank, alpha = rank. Named components get a folder each, `unet` and `text_encoder`; the
// unnamed one of a model of one's own is the folder itself. `text_model`: as in `SaveOptions`.
// Errors: c10::Error if a file or a folder cannot be written
void save_peft(const std::string& folder, const Components& components, at::ScalarType dtype,
               bool text_model);

}  // namespace lightlora::detail

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/peft-inl.h>
#endif
