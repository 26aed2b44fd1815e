// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// The text encoders of Stable Diffusion: transformers' CLIPTextModel and, with a projection,
// CLIPTextModelWithProjection, with their names.

namespace sd {

/// Activation of the feed-forward layers: quick_gelu is x sigmoid(1.702 x), gelu the exact one.
enum class CLIPActivation { quick_gelu, gelu };

struct CLIPTextModelOptions {
  /// Reads transformers' `text_encoder/config.json`; `source` is the file's name in messages. What
  /// it leaves out has the default. `attention_dropout` is not read: every published model has 0.
  /// Errors: c10::ValueError naming the field and its value for whatever is wrong or unsupported
  static CLIPTextModelOptions from_json(const nlohmann::json& config,
                                        const std::string& source = "text_encoder/config.json");

  TORCH_ARG(int64_t, vocab_size) = 49408;
  TORCH_ARG(int64_t, hidden_size) = 512;
  TORCH_ARG(int64_t, intermediate_size) = 2048;
  TORCH_ARG(int64_t, num_hidden_layers) = 12;
  TORCH_ARG(int64_t, num_attention_heads) = 8;
  TORCH_ARG(int64_t, max_position_embeddings) = 77;
  TORCH_ARG(CLIPActivation, hidden_act) = CLIPActivation::quick_gelu;
  TORCH_ARG(double, layer_norm_eps) = 1e-5;
  /// The token whose state is the pooled output; 2 means the largest id, as in old files.
  TORCH_ARG(int64_t, eos_token_id) = 49407;
  /// Width of the pooled output's projection. Default: none (CLIPTextModel).
  TORCH_ARG(std::optional<int64_t>, projection_dim) = std::nullopt;
};

/// Sum of the embeddings of tokens and of their positions.
/// Shapes: ids (B, T) int64, result (B, T, hidden)
class CLIPTextEmbeddingsImpl : public torch::nn::Cloneable<CLIPTextEmbeddingsImpl> {
 public:
  explicit CLIPTextEmbeddingsImpl(CLIPTextModelOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& ids);

  /// A learned word: vectors (n, width) in any floating dtype that stand in for the rows of its n
  /// ids. Gradients flow into them, and no row of `token_embedding` changes.
  struct Learned {
    std::vector<int64_t> ids;
    torch::Tensor vectors;
  };

  CLIPTextModelOptions options;
  torch::nn::Embedding token_embedding{nullptr}, position_embedding{nullptr};
  std::vector<Learned> learned;
};
TORCH_MODULE(CLIPTextEmbeddings);

/// Causal self attention: a token sees itself and those before it.
/// Equation: out_proj(softmax(q k^T / sqrt(hidden / heads) + mask) v)
/// Shapes:   x and result (B, T, hidden)
class CLIPAttentionImpl : public torch::nn::Cloneable<CLIPAttentionImpl> {
 public:
  explicit CLIPAttentionImpl(CLIPTextModelOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  CLIPTextModelOptions options;
  torch::nn::Linear k_proj{nullptr}, v_proj{nullptr}, q_proj{nullptr}, out_proj{nullptr};
};
TORCH_MODULE(CLIPAttention);

/// Feed-forward layer.
/// Equation: fc2(act(fc1(x)))
/// Shapes:   x and result (B, T, hidden)
class CLIPMLPImpl : public torch::nn::Cloneable<CLIPMLPImpl> {
 public:
  explicit CLIPMLPImpl(CLIPTextModelOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  CLIPTextModelOptions options;
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
};
TORCH_MODULE(CLIPMLP);

/// Equation: h = x + self_attn(layer_norm1(x)); y = h + mlp(layer_norm2(h))
/// Shapes:   x and result (B, T, hidden)
class CLIPEncoderLayerImpl : public torch::nn::Cloneable<CLIPEncoderLayerImpl> {
 public:
  explicit CLIPEncoderLayerImpl(CLIPTextModelOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  CLIPTextModelOptions options;
  CLIPAttention self_attn{nullptr};
  torch::nn::LayerNorm layer_norm1{nullptr};
  CLIPMLP mlp{nullptr};
  torch::nn::LayerNorm layer_norm2{nullptr};
};
TORCH_MODULE(CLIPEncoderLayer);

class CLIPEncoderImpl : public torch::nn::Cloneable<CLIPEncoderImpl> {
 public:
  explicit CLIPEncoderImpl(CLIPTextModelOptions options);
  void reset() override;
  /// The state after all layers but the last `skip`.
  torch::Tensor forward(torch::Tensor x, int64_t skip);
  /// The state after the layers from `begin` to before `end`.
  torch::Tensor run(torch::Tensor x, int64_t begin, int64_t end);

  CLIPTextModelOptions options;
  torch::nn::ModuleList layers;
};
TORCH_MODULE(CLIPEncoder);

class CLIPTextTransformerImpl : public torch::nn::Cloneable<CLIPTextTransformerImpl> {
 public:
  explicit CLIPTextTransformerImpl(CLIPTextModelOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& ids, int64_t clip_skip);

  CLIPTextModelOptions options;
  CLIPTextEmbeddings embeddings{nullptr};
  CLIPEncoder encoder{nullptr};
  torch::nn::LayerNorm final_layer_norm{nullptr};
};
TORCH_MODULE(CLIPTextTransformer);

/// What a UNet is told about texts, by one encoder or by two side by side.
struct PromptEmbeds {
  PromptEmbeds() = default;
  /* implicit */ PromptEmbeds(torch::Tensor states_, torch::Tensor pooled_ = {})
      : states(std::move(states_)), pooled(std::move(pooled_)) {}

  torch::Tensor states;  ///< (texts, tokens, width)
  torch::Tensor pooled;  ///< (texts, projection); undefined where the UNet wants none
};

/// The CLIP text encoder, with the projection of CLIP's loss if the options say so.
/// Shapes:  ids (B, T) int64 with T <= max_position_embeddings, result (B, T, hidden)
/// Dtypes:  every floating dtype
/// Errors:  c10::Error if T is larger, an id is not below vocab_size, or clip_skip leaves no layer
class CLIPTextModelImpl : public torch::nn::Cloneable<CLIPTextModelImpl> {
 public:
  explicit CLIPTextModelImpl(CLIPTextModelOptions options);
  void reset() override;

  /// The last hidden state, which conditions the UNet.
  torch::Tensor forward(const torch::Tensor& ids);

  /// The same without the last `clip_skip` layers (1: the second last one), still through the final
  /// layer norm, as diffusers' `clip_skip`.
  torch::Tensor hidden_state(const torch::Tensor& ids, int64_t clip_skip);

  /// What SDXL reads: the state before the last layer, or `clip_skip` layers before that one,
  /// without the final layer norm; and with a projection also the pooled output,
  /// text_projection of the end token's last state.
  PromptEmbeds penultimate(const torch::Tensor& ids, int64_t clip_skip);

  /// The state of the first end token of each row of `hidden_state`, (B, hidden).
  torch::Tensor pooled(const torch::Tensor& ids, const torch::Tensor& hidden_state) const;

  /// Makes room for `vocab_size` tokens: rows are kept, new ones are zero.
  void resize_token_embeddings(int64_t vocab_size);

  /// This module's name for a tensor of a file: transformers writes them with `text_model.` up to
  /// 5.5 and without it since.
  static std::string parameter_name(const std::string& file_name);

  CLIPTextModelOptions options;
  CLIPTextTransformer text_model{nullptr};
  torch::nn::Linear text_projection{nullptr};  ///< with `projection_dim`
};
TORCH_MODULE(CLIPTextModel);

}  // namespace sd
