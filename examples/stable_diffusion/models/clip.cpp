// SPDX-License-Identifier: Apache-2.0
#include "models/clip.h"

#include <ATen/Functions.h>
#include <torch/nn/options/normalization.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/fused_attention.h"
#include "models/blocks.h"
#include "models/config.h"

namespace sd {
namespace {

torch::nn::LayerNorm layer_norm(const CLIPTextModelOptions& options) {
  return torch::nn::LayerNorm(
      torch::nn::LayerNormOptions({options.hidden_size()}).eps(options.layer_norm_eps()));
}

}  // namespace

CLIPTextModelOptions CLIPTextModelOptions::from_json(const nlohmann::json& config,
                                                     const std::string& source) {
  const ConfigReader reader(config, source);
  CLIPTextModelOptions options;
  options.vocab_size(reader.positive("vocab_size", options.vocab_size()))
      .hidden_size(reader.positive("hidden_size", options.hidden_size()))
      .intermediate_size(reader.positive("intermediate_size", options.intermediate_size()))
      .num_hidden_layers(reader.positive("num_hidden_layers", options.num_hidden_layers()))
      .num_attention_heads(reader.positive("num_attention_heads", options.num_attention_heads()))
      .max_position_embeddings(
          reader.positive("max_position_embeddings", options.max_position_embeddings()))
      .layer_norm_eps(reader.number("layer_norm_eps", options.layer_norm_eps()))
      .eos_token_id(reader.integer("eos_token_id", options.eos_token_id()));
  reader.supports("hidden_act", {"quick_gelu", "gelu"});
  const bool gelu = config.value("hidden_act", std::string("quick_gelu")) == "gelu";
  options.hidden_act(gelu ? CLIPActivation::gelu : CLIPActivation::quick_gelu);
  if (options.hidden_size() % options.num_attention_heads() != 0) {
    reader.fail("hidden_size",
                c10::str("a multiple of num_attention_heads ", options.num_attention_heads()));
  }
  return options;
}

CLIPTextEmbeddingsImpl::CLIPTextEmbeddingsImpl(CLIPTextModelOptions options_)
    : options(std::move(options_)) {
  reset();
}

void CLIPTextEmbeddingsImpl::reset() {
  token_embedding = register_module(
      "token_embedding", torch::nn::Embedding(options.vocab_size(), options.hidden_size()));
  position_embedding = register_module(
      "position_embedding",
      torch::nn::Embedding(options.max_position_embeddings(), options.hidden_size()));
}

torch::Tensor CLIPTextEmbeddingsImpl::forward(const torch::Tensor& ids) {
  const int64_t length = ids.size(-1);
  TORCH_CHECK(length <= options.max_position_embeddings(), "sd::CLIPTextModel: expected at most ",
              options.max_position_embeddings(), " tokens, got ", length,
              "; hint: the tokenizer's model_max_length belongs to another text encoder");
  torch::Tensor x = token_embedding(ids);
  for (const auto& word : learned) {
    // One comparison with a number for each id: a tensor of them would have to be uploaded.
    std::vector<torch::Tensor> each;
    for (const int64_t id : word.ids) each.push_back(ids.eq(id));
    const auto matches = at::stack(each, /*dim=*/-1);  // (B, T, n)
    const auto rows = word.vectors.index_select(0, matches.to(at::kByte).argmax(-1).flatten());
    x = at::where(matches.any(-1, /*keepdim=*/true), rows.view(x.sizes()).to(x.scalar_type()), x);
  }
  return x + position_embedding->weight.narrow(0, 0, length);
}

CLIPAttentionImpl::CLIPAttentionImpl(CLIPTextModelOptions options_) : options(std::move(options_)) {
  reset();
}

void CLIPAttentionImpl::reset() {
  const int64_t hidden = options.hidden_size();
  const auto projection = [&](const char* name) {
    return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(hidden, hidden)));
  };
  k_proj = projection("k_proj");
  v_proj = projection("v_proj");
  q_proj = projection("q_proj");
  out_proj = projection("out_proj");
}

torch::Tensor CLIPAttentionImpl::forward(const torch::Tensor& x) {
  return linear(*out_proj, fused_attention(linear(*q_proj, x), linear(*k_proj, x),
                                           linear(*v_proj, x), options.num_attention_heads(),
                                           /*causal=*/true));
}

CLIPMLPImpl::CLIPMLPImpl(CLIPTextModelOptions options_) : options(std::move(options_)) { reset(); }

void CLIPMLPImpl::reset() {
  fc1 = register_module("fc1", torch::nn::Linear(torch::nn::LinearOptions(
                                   options.hidden_size(), options.intermediate_size())));
  fc2 = register_module("fc2", torch::nn::Linear(torch::nn::LinearOptions(
                                   options.intermediate_size(), options.hidden_size())));
}

torch::Tensor CLIPMLPImpl::forward(const torch::Tensor& x) {
  const auto hidden = linear(*fc1, x);
  if (options.hidden_act() == CLIPActivation::gelu) return linear(*fc2, at::gelu(hidden));
  return linear(*fc2, hidden * at::sigmoid(hidden * 1.702));
}

CLIPEncoderLayerImpl::CLIPEncoderLayerImpl(CLIPTextModelOptions options_)
    : options(std::move(options_)) {
  reset();
}

void CLIPEncoderLayerImpl::reset() {
  self_attn = register_module("self_attn", CLIPAttention(options));
  layer_norm1 = register_module("layer_norm1", layer_norm(options));
  mlp = register_module("mlp", CLIPMLP(options));
  layer_norm2 = register_module("layer_norm2", layer_norm(options));
}

torch::Tensor CLIPEncoderLayerImpl::forward(const torch::Tensor& x) {
  const auto attended = x + self_attn(layer_norm1(x));
  return attended + mlp(layer_norm2(attended));
}

CLIPEncoderImpl::CLIPEncoderImpl(CLIPTextModelOptions options_) : options(std::move(options_)) {
  reset();
}

void CLIPEncoderImpl::reset() {
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < options.num_hidden_layers(); ++i) {
    layers->push_back(CLIPEncoderLayer(options));
  }
}

torch::Tensor CLIPEncoderImpl::forward(torch::Tensor x, int64_t skip) {
  const int64_t count = options.num_hidden_layers();
  TORCH_CHECK_VALUE(skip >= 0 && skip <= count, "--clip_skip: expected a number from 0 to ", count,
                    ", got ", skip);
  return run(std::move(x), 0, count - skip);
}

torch::Tensor CLIPEncoderImpl::run(torch::Tensor x, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) x = layers->at<CLIPEncoderLayerImpl>(i).forward(x);
  return x;
}

CLIPTextTransformerImpl::CLIPTextTransformerImpl(CLIPTextModelOptions options_)
    : options(std::move(options_)) {
  reset();
}

void CLIPTextTransformerImpl::reset() {
  embeddings = register_module("embeddings", CLIPTextEmbeddings(options));
  encoder = register_module("encoder", CLIPEncoder(options));
  final_layer_norm = register_module("final_layer_norm", layer_norm(options));
}

torch::Tensor CLIPTextTransformerImpl::forward(const torch::Tensor& ids, int64_t clip_skip) {
  return final_layer_norm(encoder(embeddings(ids), clip_skip));
}

CLIPTextModelImpl::CLIPTextModelImpl(CLIPTextModelOptions options_) : options(std::move(options_)) {
  reset();
}

void CLIPTextModelImpl::reset() {
  text_model = register_module("text_model", CLIPTextTransformer(options));
  if (!options.projection_dim()) return;
  text_projection = register_module(
      "text_projection",
      torch::nn::Linear(
          torch::nn::LinearOptions(options.hidden_size(), *options.projection_dim()).bias(false)));
}

torch::Tensor CLIPTextModelImpl::forward(const torch::Tensor& ids) { return text_model(ids, 0); }

torch::Tensor CLIPTextModelImpl::hidden_state(const torch::Tensor& ids, int64_t clip_skip) {
  return text_model(ids, clip_skip);
}

PromptEmbeds CLIPTextModelImpl::penultimate(const torch::Tensor& ids, int64_t clip_skip) {
  const int64_t count = options.num_hidden_layers(), end = count - 1 - clip_skip;
  TORCH_CHECK_VALUE(clip_skip >= 0 && end >= 0, "--clip_skip: expected a number from 0 to ",
                    count - 1, ", got ", clip_skip);
  auto& encoder = *text_model->encoder;
  const auto state = encoder.run(text_model->embeddings(ids), 0, end);
  if (!options.projection_dim()) return state;
  const auto last = text_model->final_layer_norm(encoder.run(state, end, count));
  return {state, linear(*text_projection, pooled(ids, last))};
}

torch::Tensor CLIPTextModelImpl::pooled(const torch::Tensor& ids,
                                        const torch::Tensor& hidden_state) const {
  const auto marks =
      options.eos_token_id() == 2 ? ids : ids.eq(options.eos_token_id()).to(at::kInt);
  const auto at_end = marks.argmax(-1).view({-1, 1, 1}).expand({-1, 1, hidden_state.size(-1)});
  return hidden_state.gather(1, at_end).squeeze(1);
}

void CLIPTextModelImpl::resize_token_embeddings(int64_t vocab_size) {
  TORCH_CHECK_VALUE(vocab_size >= options.vocab_size(),
                    "sd::CLIPTextModel: expected a vocabulary of at least ", options.vocab_size(),
                    ", got ", vocab_size);
  auto& embedding = text_model->embeddings->token_embedding;
  const torch::NoGradGuard no_grad;
  const auto rows = embedding->weight.new_zeros({vocab_size, options.hidden_size()});
  rows.narrow(0, 0, embedding->weight.size(0)).copy_(embedding->weight);
  // In place, so that the registered parameter and every copy of its handle see the new rows.
  embedding->weight.set_data(rows);
  embedding->options.num_embeddings(vocab_size);
  options.vocab_size(vocab_size);
  text_model->options.vocab_size(vocab_size);
  text_model->embeddings->options.vocab_size(vocab_size);
}

std::string CLIPTextModelImpl::parameter_name(const std::string& file_name) {
  static const std::string prefix = "text_model.";
  const bool own = file_name.rfind(prefix, 0) == 0 || file_name == "text_projection.weight";
  return own ? file_name : prefix + file_name;
}

}  // namespace sd
