// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/formats/native.h>
#include <torch/arg.h>

#include <string>

namespace lightlora {

/// How a PEFT folder is written.
struct PeftOptions {
  /// Dtype of the tensors. Default: fp32
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
  /// Keep `text_model.` in the names of the text encoder's layers. transformers has it in its own
  /// names up to 5.5 and not since, and PEFT loads nothing, with a warning only, if they differ.
  /// Default: true
  TORCH_ARG(bool, text_model) = true;
};

/// Writes a folder for PEFT's `PeftModel.from_pretrained`: classic factors with the scale folded
/// in, one rank, alpha = rank. Named components get a folder each, `unet` and `text_encoder`; the
/// unnamed one of a model of one's own is the folder itself.
/// Errors: c10::Error if a file or a folder cannot be written
void save_peft(const std::string& folder, const Components& components,
               const PeftOptions& options = {});

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/peft-inl.h>
#endif
