// SPDX-License-Identifier: Apache-2.0
// What the UNet is told about texts: StableDiffusion::encode_prompt, encode_chunks and their parts.
#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "pipeline/device.h"
#include "pipeline/pipeline.h"

namespace sd {
namespace {

// The encoders' states side by side; only the last one has a pooled output.
PromptEmbeds side_by_side(const std::vector<PromptEmbeds>& parts) {
  if (parts.size() == 1) return parts.front();
  std::vector<torch::Tensor> states;
  for (const auto& part : parts) states.push_back(part.states);
  return {at::cat(states, /*dim=*/-1), parts.back().pooled};
}

// The states of a text in chunks as those of one text: the begin of the first chunk and the end of
// the last one around what is between. The pooled output is the first chunk's.
PromptEmbeds joined(const PromptEmbeds& embeds, int64_t chunks) {
  if (chunks == 1) return embeds;
  const auto states = embeds.states.unflatten(0, {-1, chunks});
  const int64_t length = states.size(-2), inner = length - 2;
  std::vector<torch::Tensor> pieces{states.select(1, 0).narrow(-2, 0, 1)};
  for (int64_t i = 0; i < chunks; ++i) pieces.push_back(states.select(1, i).narrow(-2, 1, inner));
  pieces.push_back(states.select(1, chunks - 1).narrow(-2, length - 1, 1));
  torch::Tensor pooled;
  if (embeds.pooled.defined()) pooled = embeds.pooled.unflatten(0, {-1, chunks}).select(1, 0);
  return {at::cat(pieces, /*dim=*/-2), pooled};
}

// Multiplies a chunk's states in place by its weights, and keeps their mean.
void weigh(torch::Tensor state, const std::vector<double>& weights_) {
  const auto weights = torch::tensor(weights_).to(state.device(), at::kFloat);
  const auto before = state.to(at::kFloat).flatten(-2).mean(-1, /*keepdim=*/true).unsqueeze(-1);
  const auto weighted = state.to(at::kFloat) * weights.unsqueeze(-1);
  const auto after = weighted.flatten(-2).mean(-1, /*keepdim=*/true).unsqueeze(-1);
  state.copy_(weighted * (before / after));  // each layer's states by themselves
}

}  // namespace

std::vector<torch::Tensor> StableDiffusion::token_ids(const std::vector<std::string>& texts,
                                                      int64_t chunks) const {
  TORCH_CHECK_VALUE(!texts.empty(), "sd::StableDiffusion::encode_prompt: expected texts, got none");
  std::vector<torch::Tensor> all;
  for (size_t encoder = 0; encoder < text_.size(); ++encoder) {
    const auto& own = tokenizer(encoder);
    const int64_t inner = own.model_max_length() - 2;
    std::vector<int64_t> ids;
    for (const auto& text : texts) {
      const auto words = own.tokenize(text);
      const auto count = static_cast<int64_t>(words.size());
      for (int64_t i = 0; i < chunks; ++i) {
        const int64_t begin = std::min(i * inner, count), end = std::min(begin + inner, count);
        const auto chunk = own.wrap(words.data() + begin, static_cast<size_t>(end - begin));
        ids.insert(ids.end(), chunk.begin(), chunk.end());
      }
    }
    all.push_back(on_device(encoder, ids, static_cast<int64_t>(texts.size()) * chunks));
  }
  return all;
}

PromptEmbeds StableDiffusion::encode_ids(const std::vector<torch::Tensor>& ids, int64_t clip_skip,
                                         int64_t chunks) {
  std::vector<PromptEmbeds> parts;
  for (size_t encoder = 0; encoder < text_.size(); ++encoder) {
    parts.push_back(joined(hidden_states(encoder, ids.at(encoder), clip_skip), chunks));
  }
  return side_by_side(parts);
}

PromptEmbeds StableDiffusion::encoded(Text& text, const torch::Tensor& ids,
                                      int64_t clip_skip) const {
  if (is_sdxl()) return text.model->penultimate(ids, clip_skip);
  return text.model->hidden_state(ids, clip_skip);
}

torch::Tensor StableDiffusion::on_device(size_t encoder, const std::vector<int64_t>& ids,
                                         int64_t rows) const {
  const auto& text = text_.at(encoder);
  const int64_t largest = *std::max_element(ids.begin(), ids.end());
  const int64_t known = text_encoder(encoder)->options.vocab_size();
  TORCH_CHECK(largest < known, "'", part(ModelIndex::tokenizer_of(text.name)),
              "': expected ids below ", known, " (the text encoder's vocab_size), got ", largest,
              "; hint: the tokenizer belongs to another model");
  return upload(torch::tensor(ids, at::kLong).view({rows, -1}), options_.device());
}

PromptEmbeds StableDiffusion::hidden_states(size_t encoder, const torch::Tensor& batch,
                                            int64_t clip_skip) {
  auto& text = text_.at(encoder);
  text_encoder(encoder);  // or an error
  auto& learned = text.model->text_model->embeddings->learned;
  learned = text.learned;
  int64_t layers = 0;
  for (const auto& word : text.learned)
    layers = word.vectors.dim() == 3 ? word.vectors.size(0) : layers;
  if (layers == 0) return encoded(text, batch, clip_skip);
  std::vector<torch::Tensor> states;
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (size_t i = 0; i < text.learned.size(); ++i) {
      if (text.learned[i].vectors.dim() == 3) learned[i].vectors = text.learned[i].vectors[layer];
    }
    states.push_back(encoded(text, batch, clip_skip).states);
  }
  return at::stack(states, /*dim=*/1);
}

StableDiffusion::Chunks StableDiffusion::prompt_chunks(const std::string& text,
                                                       PromptSyntax syntax) const {
  Chunks chunks;
  for (size_t encoder = 0; encoder < text_.size(); ++encoder) {
    chunks.push_back(sd::prompt_chunks(tokenizer(encoder), text, syntax));
  }
  return chunks;
}

PromptEmbeds StableDiffusion::encode_chunks(size_t encoder, const std::vector<PromptChunk>& chunks,
                                            int64_t clip_skip) {
  std::vector<int64_t> ids;
  for (const auto& chunk : chunks) ids.insert(ids.end(), chunk.ids.begin(), chunk.ids.end());
  const auto batch = on_device(encoder, ids, static_cast<int64_t>(chunks.size()));
  const auto embeds = hidden_states(encoder, batch, clip_skip);
  const auto& states = embeds.states;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].weighted()) weigh(states[static_cast<int64_t>(i)], chunks[i].weights);
  }
  const auto pooled = embeds.pooled.defined() ? embeds.pooled.narrow(0, 0, 1) : torch::Tensor();
  if (states.dim() == 3) return {states.reshape({1, -1, states.size(-1)}), pooled};
  return {states.transpose(0, 1).reshape({1, states.size(1), -1, states.size(-1)}), pooled};
}

PromptEmbeds StableDiffusion::encode_chunks(Chunks chunks, size_t at_least, int64_t clip_skip) {
  for (const auto& own : chunks) at_least = std::max(at_least, own.size());
  std::vector<PromptEmbeds> parts;
  for (size_t encoder = 0; encoder < chunks.size(); ++encoder) {
    auto& own = chunks[encoder];
    while (own.size() < at_least) {
      own.push_back(sd::prompt_chunks(tokenizer(encoder), "", PromptSyntax::plain).front());
    }
    parts.push_back(encode_chunks(encoder, own, clip_skip));
  }
  return side_by_side(parts);
}

}  // namespace sd
