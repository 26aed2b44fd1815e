// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/embeddings.h>

#include <string>
#include <vector>

#include "pipeline/pipeline.h"

namespace sd {

/// Reads "FILE" or "FILE:TOKEN" and gives the embeddings of the file; a colon counts only if no
/// file has the whole name.
/// Errors: those of `lightlora::load_embeddings`
std::vector<lightlora::LearnedEmbedding> read_embeddings(const std::string& text);

/// Makes the embedding's name a token of its own, which stands for as many tokens as it has
/// vectors. Returns their ids.
/// Errors: c10::Error if the vocabulary has the name already
std::vector<int64_t> add_embedding(Tokenizer& tokenizer,
                                   const lightlora::LearnedEmbedding& embedding);

/// The same, and lets the models read the vectors. Prompts may then use the name. The vectors are
/// kept as they are, so that those that train go on training.
/// Errors: c10::Error if it is not for as many text encoders as there are, their width is not the
/// text encoder's, or a layer-wise embedding is not for the UNet's transformers
void add_embedding(StableDiffusion& pipeline, const lightlora::LearnedEmbedding& embedding);

/// A word that a LoRA file holds beside its adapters.
struct BundledWord {
  std::string file, token;
  std::string problem;  ///< why it was not added; empty if it was
};

/// Adds the words that OneTrainer bundles with a LoRA (`bundle_emb`), of SDXL the vectors for both
/// text encoders, told apart by their widths. What cannot be added is named, and no error: the
/// adapters are of use without it.
std::vector<BundledWord> add_bundled(StableDiffusion& pipeline, const std::string& file);

}  // namespace sd
