// SPDX-License-Identifier: Apache-2.0
#include "pipeline/embeddings.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "support/files/limits.h"

namespace sd {

namespace {

// A layer-wise embedding's slices in the order in which the UNet reads them.
at::Tensor slices_in_order(const lightlora::LearnedEmbedding& embedding,
                           const std::vector<std::string>& transformers) {
  const auto& layers = embedding.layers;
  if (layers.empty() || layers == transformers) return embedding.vectors;
  std::vector<int64_t> order;
  for (const auto& name : transformers) {
    const auto found = std::find(layers.begin(), layers.end(), name);
    if (found != layers.end()) order.push_back(found - layers.begin());
  }
  TORCH_CHECK(order.size() == transformers.size() && layers.size() == transformers.size(), "'",
              embedding.token, "': expected vectors for the ", transformers.size(),
              " transformers of the UNet, ", transformers.front(), " to ", transformers.back(),
              ", got ", layers.size(), ", ", layers.front(), " to ", layers.back(),
              "; hint: it was trained for another kind of model");
  return embedding.vectors.index_select(0, at::tensor(order, at::kLong));
}

}  // namespace

std::vector<lightlora::LearnedEmbedding> read_embeddings(const std::string& text) {
  const auto colon = text.rfind(':');
  const bool whole = colon == std::string::npos || limits::exists(text);
  if (whole) return lightlora::load_embeddings(text);
  return lightlora::load_embeddings(text.substr(0, colon), text.substr(colon + 1));
}

std::vector<int64_t> add_embedding(Tokenizer& tokenizer,
                                   const lightlora::LearnedEmbedding& embedding) {
  TORCH_CHECK(
      !tokenizer.token_id(embedding.token), "'", embedding.token,
      "': expected a name that the tokenizer does not know yet, got one that it does; hint: ",
      "give the embedding another name, as FILE:NAME");
  return tokenizer.add_token(embedding.token, embedding.vectors.size(-2));
}

void add_embedding(StableDiffusion& pipeline, const lightlora::LearnedEmbedding& embedding) {
  const size_t encoders = pipeline.text_encoders();
  const size_t own = embedding.vectors_2.defined() ? 2 : 1;
  TORCH_CHECK(own == encoders && (own == 1 || embedding.layers.empty()), "'", embedding.token,
              "': expected ", encoders == 2 ? "vectors for both text encoders" : "one text encoder",
              ", got ",
              own == 2                   ? "vectors for two"
              : embedding.layers.empty() ? "vectors for one"
                                         : "layer-wise ones",
              "; hint: it was trained for another kind of model");
  for (size_t i = 0; i < encoders; ++i) {
    auto encoder = pipeline.text_encoder(i);
    const int64_t width = encoder->options.hidden_size();
    const auto& vectors = i == 0 ? embedding.vectors : embedding.vectors_2;
    TORCH_CHECK(vectors.size(-1) == width, "'", embedding.token, "': expected vectors of width ",
                width, " (the text encoder's), got ", vectors.size(-1),
                "; hint: it was trained for another kind of model");
    const auto sliced =
        i == 0 ? slices_in_order(embedding, pipeline.unet()->attention_names()) : vectors;
    const auto ids = add_embedding(pipeline.tokenizer(i), embedding);
    const int64_t rows = *std::max_element(ids.begin(), ids.end()) + 1;
    // The next free id follows the largest of the tokenizer's, which a file may put anywhere.
    TORCH_CHECK(rows <= encoder->options.vocab_size() + limits::kEmptyRows + vectors.size(-2), "'",
                pipeline.folder(), "': expected a tokenizer with ids of about ",
                encoder->options.vocab_size(), " (the text encoder's), got ", rows - 1,
                "; hint: the tokenizer belongs to another model");
    if (rows > encoder->options.vocab_size()) encoder->resize_token_embeddings(rows);
    pipeline.learn(ids, sliced, i);
  }
}

namespace {

// Vectors of one name, in the order of the text encoders. Widths tell which are whose.
lightlora::LearnedEmbedding together(const StableDiffusion& pipeline,
                                     const std::vector<lightlora::LearnedEmbedding>& parts) {
  auto result = parts.front();
  if (pipeline.text_encoders() < 2 || parts.size() != 2) return result;
  const int64_t first = pipeline.text_encoder(0)->options.hidden_size();
  const bool swapped = parts[0].vectors.size(-1) != first;
  result.vectors = parts[swapped ? 1 : 0].vectors;
  result.vectors_2 = parts[swapped ? 0 : 1].vectors;
  return result;
}

}  // namespace

std::vector<BundledWord> add_bundled(StableDiffusion& pipeline, const std::string& file) {
  std::vector<BundledWord> words;
  std::map<std::string, std::vector<lightlora::LearnedEmbedding>> by_token;
  try {
    for (auto& part : lightlora::load_embeddings(file)) by_token[part.token].push_back(part);
  } catch (const c10::Error& error) {
    return {{file, "", error.what_without_backtrace()}};
  }
  for (const auto& [token, parts] : by_token) {
    words.push_back({file, token, ""});
    try {
      add_embedding(pipeline, together(pipeline, parts));
    } catch (const c10::Error& error) {
      words.back().problem = error.what_without_backtrace();
    }
  }
  return words;
}

}  // namespace sd
