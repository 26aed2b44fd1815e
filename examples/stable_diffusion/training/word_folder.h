// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/embeddings.h>

#include <string>

#include "pipeline/pipeline.h"

namespace training {

/// Writes a model in diffusers layout whose tokenizer and text encoder know a learned word; its other
/// parts are copied. What diffusers' script writes with --save_as_full_pipeline.
/// Errors: c10::ValueError if the model is no folder, the word is layer-wise, or the folder is the
/// model's own
void check_word_folder(const std::string& model, bool layerwise, const std::string& folder);
void save_word_folder(const sd::StableDiffusion& pipeline, const lightlora::LearnedEmbedding& word,
                      const std::string& folder);

}  // namespace training
