// SPDX-License-Identifier: Apache-2.0
#include "stable_diffusion/embeddings.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <filesystem>

namespace sd {

std::vector<lightlora::LearnedEmbedding> read_embeddings(const std::string& text) {
  const auto colon = text.rfind(':');
  const bool whole = colon == std::string::npos || std::filesystem::exists(text);
  if (whole) return lightlora::load_embeddings(text);
  return lightlora::load_embeddings(text.substr(0, colon), text.substr(colon + 1));
}

std::vector<int64_t> add_embedding(Tokenizer& tokenizer,
                                   const lightlora::LearnedEmbedding& embedding) {
  TORCH_CHECK(!tokenizer.token_id(embedding.token), "'", embedding.token,
              "': expected a name that the tokenizer does not know yet, got one that it does; hint: ",
              "give the embedding another name, as FILE:NAME");
  return tokenizer.add_token(embedding.token, embedding.vectors.size(-2));
}

void add_embedding(StableDiffusion& pipeline, const lightlora::LearnedEmbedding& embedding) {
  auto encoder = pipeline.text_encoder();
  const int64_t width = encoder->options.hidden_size();
  TORCH_CHECK(embedding.layers.empty(), "'", embedding.token,
              "': expected an embedding for the whole text encoder, got a layer-wise one");
  TORCH_CHECK(embedding.vectors.size(-1) == width, "'", embedding.token,
              "': expected vectors of width ", width, " (the text encoder's), got ",
              embedding.vectors.size(-1), "; hint: it was trained for another kind of model");
  const auto ids = add_embedding(pipeline.tokenizer(), embedding);
  const int64_t rows = *std::max_element(ids.begin(), ids.end()) + 1;
  if (rows > encoder->options.vocab_size()) encoder->resize_token_embeddings(rows);
  const at::NoGradGuard no_grad;
  auto weight = encoder->text_model->embeddings->token_embedding->weight;
  for (size_t i = 0; i < ids.size(); ++i) {
    weight[ids[i]].copy_(embedding.vectors[static_cast<int64_t>(i)]);
  }
}

}  // namespace sd
