// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/attention.h"
#include "models/blocks.h"

namespace sd {

/// One level of a UNet: its resnets, and a transformer after each of them if `attention` is set.
struct UNetBlockOptions {
  /// One entry for each resnet, in order.
  std::vector<ResnetBlock2DOptions> resnets;
  /// The level's transformers. Default: none (DownBlock2D, UpBlock2D).
  std::optional<Transformer2DModelOptions> attention;
  /// Transformer blocks of each of them, or one number for all. Default: as `attention` says.
  std::vector<int64_t> transformer_layers;
  /// The level ends in a down- or upsampler. Default: true.
  bool add_sampler = true;
  /// Padding of the downsampler. Default: 1.
  int64_t downsample_padding = 1;
  /// The place of the block's first transformer among all of the UNet's.
  int64_t first_attention = 0;

  /// What the block's i-th transformer reads: the context, or its own slice of a layer-wise one
  /// (B, transformers, T, width).
  at::Tensor context_of(const at::Tensor& context, size_t i) const {
    return context.dim() == 4 ? context.select(1, first_attention + static_cast<int64_t>(i))
                              : context;
  }
};

/// A block's resnets and transformers, as registered under diffusers' names.
struct ResnetsAndAttentions {
  torch::nn::ModuleList resnets, attentions;

  ResnetBlock2DImpl& resnet(size_t i) { return resnets->at<ResnetBlock2DImpl>(i); }
  Transformer2DModelImpl& attention(size_t i) { return attentions->at<Transformer2DModelImpl>(i); }
};

/// Level of the contracting half: CrossAttnDownBlock2D, or DownBlock2D without transformers.
/// Shapes: x (B, in, H, W), activated_temb (B, temb), context (B, T, cross_attention_dim);
///         result (B, out, H', W'). Appends what the expanding half will want to `skips`.
class UNetDownBlockImpl : public torch::nn::Cloneable<UNetDownBlockImpl> {
 public:
  explicit UNetDownBlockImpl(UNetBlockOptions options);
  void reset() override;

  at::Tensor forward(at::Tensor x, const at::Tensor& activated_temb, const at::Tensor& context,
                     std::vector<at::Tensor>& skips);

  UNetBlockOptions options;

 private:
  ResnetsAndAttentions layers_;
  torch::nn::ModuleList downsamplers_;
};
TORCH_MODULE(UNetDownBlock);

/// Between the halves: UNetMidBlock2DCrossAttn, or UNetMidBlock2D, which is one resnet.
/// Shapes: x (B, C, H, W), result the same
class UNetMidBlockImpl : public torch::nn::Cloneable<UNetMidBlockImpl> {
 public:
  explicit UNetMidBlockImpl(UNetBlockOptions options);
  void reset() override;

  at::Tensor forward(at::Tensor x, const at::Tensor& activated_temb, const at::Tensor& context);

  UNetBlockOptions options;

 private:
  ResnetsAndAttentions layers_;
};
TORCH_MODULE(UNetMidBlock);

/// Level of the expanding half: CrossAttnUpBlock2D, or UpBlock2D without transformers.
/// Takes one entry off the end of `skips` for each resnet, and enlarges to the size of the entry
/// that is then the last: twice the size, except where an odd size was halved.
class UNetUpBlockImpl : public torch::nn::Cloneable<UNetUpBlockImpl> {
 public:
  explicit UNetUpBlockImpl(UNetBlockOptions options);
  void reset() override;

  at::Tensor forward(at::Tensor x, const at::Tensor& activated_temb, const at::Tensor& context,
                     std::vector<at::Tensor>& skips);

  UNetBlockOptions options;

 private:
  ResnetsAndAttentions layers_;
  torch::nn::ModuleList upsamplers_;
};
TORCH_MODULE(UNetUpBlock);

}  // namespace sd
