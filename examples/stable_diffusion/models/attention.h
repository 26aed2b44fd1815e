// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/packing.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <memory>

namespace sd {

/// Pixels as tokens: (B, C, H, W) to contiguous (B, H*W, C); a view of a channels-last map.
at::Tensor to_tokens(const at::Tensor& map);

/// Tokens as pixels: (B, H*W, C) to (B, C, H, W) of the size and memory format of `like`; a view if
/// that is channels last.
at::Tensor to_map(const at::Tensor& tokens, const at::Tensor& like);

/// Scaled dot-product attention of several heads.
/// Equation: softmax(q k^T / sqrt(d)) v for each head, d = C / heads
/// Shapes:   query (B, N, C), key and value (B, T, C), result (B, N, C)
/// Dtypes:   `upcast` computes fp16 and bf16 in fp32
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     int64_t heads, bool upcast);

/// Sizes of one Attention.
struct AttentionOptions {
  AttentionOptions(int64_t query_dim, int64_t context_dim, int64_t heads, int64_t dim_head)
      : query_dim_(query_dim), context_dim_(context_dim), heads_(heads), dim_head_(dim_head) {}

  TORCH_ARG(int64_t, query_dim);
  TORCH_ARG(int64_t, context_dim);
  TORCH_ARG(int64_t, heads);
  TORCH_ARG(int64_t, dim_head);
  /// Compute half-precision attention in fp32. Default: false.
  TORCH_ARG(bool, upcast_attention) = false;
};

/// The projected context of an attention layer; of a text it stays the same over all denoising
/// steps.
struct KeyValue {
  at::Tensor key, value;
};

/// Self or cross attention over tokens.
/// Equation: to_out.0(attention(to_q(x), to_k(context), to_v(context)))
/// Shapes:   x (B, N, query_dim), context (B, T, context_dim), result (B, N, query_dim)
/// Differs from diffusers: there `upcast_attention` has no effect with PyTorch 2's attention
/// Without gradients in evaluation mode, key and value of a context other than x are kept: a text
/// is the same one in every denoising step. Adapters that are active count as the weights do.
class AttentionImpl : public torch::nn::Cloneable<AttentionImpl> {
 public:
  explicit AttentionImpl(AttentionOptions options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& context);
  /// The two halves of `forward`, for callers that keep the projected context.
  KeyValue project(const at::Tensor& context);
  at::Tensor attend(const at::Tensor& x, const KeyValue& context);
  /// Lets projections of one input be one product, see lightlora::group_weights; undone by `to()`.
  void group_projections();

  AttentionOptions options;
  torch::nn::Linear to_q{nullptr}, to_k{nullptr}, to_v{nullptr};
  torch::nn::ModuleList to_out;

 private:
  KeyValue project_once(const at::Tensor& context);
  at::Tensor attend_to(const at::Tensor& query, const KeyValue& context);

  std::shared_ptr<lightlora::InferenceCache> cache_ = std::make_shared<lightlora::InferenceCache>();
};
TORCH_MODULE(Attention);

/// Gated activation.
/// Equation: (value, gate) = proj(x); y = value * gelu(gate)
/// Shapes:   x (..., in), y (..., out)
class GEGLUImpl : public torch::nn::Cloneable<GEGLUImpl> {
 public:
  GEGLUImpl(int64_t in, int64_t out);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::Linear proj{nullptr};

 private:
  int64_t in_;
  int64_t out_;
};
TORCH_MODULE(GEGLU);

/// Feed-forward layer: `net.0` is a GEGLU to four times the width, `net.2` a Linear back.
/// Shapes: x (..., dim), result the same
class FeedForwardImpl : public torch::nn::Cloneable<FeedForwardImpl> {
 public:
  explicit FeedForwardImpl(int64_t dim);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::ModuleList net;

 private:
  int64_t dim_;
};
TORCH_MODULE(FeedForward);

/// Sizes and switches of one Transformer2DModel.
struct Transformer2DModelOptions {
  Transformer2DModelOptions(int64_t channels, int64_t heads, int64_t cross_attention_dim)
      : channels_(channels), heads_(heads), cross_attention_dim_(cross_attention_dim) {}

  /// Width of one head: the channels over the heads, rounded down as diffusers does.
  int64_t dim_head() const { return channels_ / heads_; }
  /// Width of the tokens.
  int64_t inner_dim() const { return heads_ * dim_head(); }

  TORCH_ARG(int64_t, channels);
  TORCH_ARG(int64_t, heads);
  /// Width of the text embeddings.
  TORCH_ARG(int64_t, cross_attention_dim);
  /// Transformer blocks. Default: 1.
  TORCH_ARG(int64_t, layers) = 1;
  /// Groups of the normalisation before the first projection. Default: 32.
  TORCH_ARG(int64_t, groups) = 32;
  /// Linear projections on tokens (SD 2.x, SDXL) instead of 1x1 convolutions (SD 1.x). Default: false.
  TORCH_ARG(bool, use_linear_projection) = false;
  /// The first attention sees the text too. Default: false.
  TORCH_ARG(bool, only_cross_attention) = false;
  /// Compute half-precision attention in fp32. Default: false.
  TORCH_ARG(bool, upcast_attention) = false;
};

/// Self-attention, cross-attention and feed-forward, each behind a LayerNorm and around a residual.
/// Shapes: x (B, N, C), context (B, T, cross_attention_dim), result (B, N, C)
class BasicTransformerBlockImpl : public torch::nn::Cloneable<BasicTransformerBlockImpl> {
 public:
  explicit BasicTransformerBlockImpl(Transformer2DModelOptions options);
  void reset() override;

  at::Tensor forward(at::Tensor x, const at::Tensor& context);

  Transformer2DModelOptions options;
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr}, norm3{nullptr};
  Attention attn1{nullptr}, attn2{nullptr};
  FeedForward ff{nullptr};
};
TORCH_MODULE(BasicTransformerBlock);

/// Transformer blocks over the pixels of a feature map, around a residual.
/// Shapes: x (B, C, H, W), context (B, T, cross_attention_dim), result (B, C, H, W)
/// Channels-last maps become tokens and maps again without a copy.
class Transformer2DModelImpl : public torch::nn::Cloneable<Transformer2DModelImpl> {
 public:
  explicit Transformer2DModelImpl(Transformer2DModelOptions options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& context);

  Transformer2DModelOptions options;
  torch::nn::GroupNorm norm{nullptr};
  /// One pair of these exists, as `use_linear_projection` says.
  torch::nn::Linear proj_in_linear{nullptr}, proj_out_linear{nullptr};
  torch::nn::Conv2d proj_in_conv{nullptr}, proj_out_conv{nullptr};
  torch::nn::ModuleList transformer_blocks;
};
TORCH_MODULE(Transformer2DModel);

}  // namespace sd
