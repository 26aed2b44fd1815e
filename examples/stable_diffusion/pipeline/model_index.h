// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace sd {

/// What a model in diffusers layout is, as its `model_index.json` says.
struct ModelIndex {
  /// Two text encoders side by side, the second one with a projection: SDXL and its descendants.
  bool two_text_encoders = false;
  /// SDXL: no negative prompt means zeros and not the states of an empty text. Default: true, as in
  /// diffusers.
  bool force_zeros_for_empty_prompt = true;

  /// "text_encoder" and, for SDXL, "text_encoder_2".
  std::vector<std::string> text_encoders() const;
  /// The tokenizer that belongs to a text encoder.
  static std::string tokenizer_of(const std::string& text_encoder);
};

/// Reads the index of a folder, and looks whether all parts that it names are there.
/// Errors: c10::Error for a folder that is no model or an unfinished one, and for models of another
///         kind: a refiner, an inpainting class, a transformer
ModelIndex read_model_index(const std::string& folder);

/// Refuses models that are sampled in another way than all others.
/// Errors: c10::Error for a scheduler whose name begins with EDM (Playground v2.5)
void check_scheduler_class(const nlohmann::json& scheduler, const std::string& source);

}  // namespace sd
