// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/packing.h>

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/unet_blocks.h"

namespace sd {

/// Sizes and switches of a UNet, with diffusers' names and defaults. A list over the levels may
/// also hold a single value for all of them.
struct UNet2DConditionModelOptions {
  /// Reads diffusers' `unet/config.json`; `source` is the file's name in messages.
  /// Errors: c10::ValueError naming the field and its value for whatever is wrong or unsupported
  static UNet2DConditionModelOptions from_json(const nlohmann::json& config,
                                               const std::string& source = "unet/config.json");

  /// Throws c10::ValueError if the options do not fit together.
  void check(const std::string& source) const;

  size_t levels() const { return block_out_channels_.size(); }

  /// Height and width of the latents that the model was made for, if the file says so.
  TORCH_ARG(std::vector<int64_t>, sample_size) = {};
  TORCH_ARG(int64_t, in_channels) = 4;
  TORCH_ARG(int64_t, out_channels) = 4;
  /// Map the sample from [0, 1] to [-1, 1] first. Default: false.
  TORCH_ARG(bool, center_input_sample) = false;
  /// Time embedding: cosines before sines. Default: true.
  TORCH_ARG(bool, flip_sin_to_cos) = true;
  /// Time embedding: what is taken off the number of frequencies. Default: 0.
  TORCH_ARG(double, freq_shift) = 0;
  /// Width of the time embedding. Default: four times the first level's channels.
  TORCH_ARG(std::optional<int64_t>, time_embedding_dim) = std::nullopt;
  TORCH_ARG(std::vector<std::string>, down_block_types) = {
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "DownBlock2D"
  };
  TORCH_ARG(std::vector<std::string>, up_block_types) = {
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "CrossAttnUpBlock2D",
    "CrossAttnUpBlock2D"
  };
  TORCH_ARG(std::vector<int64_t>, block_out_channels) = { 320, 640, 1280, 1280 };
  TORCH_ARG(std::vector<int64_t>, layers_per_block) = { 2 };
  /// For each level the transformer blocks of its transformers: one number for all of them, or one
  /// for each.
  TORCH_ARG(std::vector<std::vector<int64_t>>, transformer_layers_per_block) = { {1} };
  /// The same for the expanding half, in its order. Default: the contracting half's, reversed.
  TORCH_ARG(std::vector<std::vector<int64_t>>, reverse_transformer_layers_per_block) = {};
  TORCH_ARG(std::vector<int64_t>, cross_attention_dim) = { 1280 };
  /// The number of heads, whatever its name says: diffusers keeps the old, wrong name.
  TORCH_ARG(std::vector<int64_t>, attention_head_dim) = { 8 };
  TORCH_ARG(std::vector<bool>, only_cross_attention) = { false };
  TORCH_ARG(bool, use_linear_projection) = false;
  /// Whether the middle has a transformer and a second resnet around it: UNetMidBlock2DCrossAttn,
  /// or else UNetMidBlock2D.
  TORCH_ARG(bool, mid_block_attention) = true;
  TORCH_ARG(bool, upcast_attention) = false;
  /// Conditions beside the text's states: with "text_time" a pooled text and numbers about the
  /// picture (SDXL). Default: none.
  TORCH_ARG(bool, text_time) = false;
  /// With them: the width of the embedding of each number, and of all of them with the pooled text.
  TORCH_ARG(int64_t, addition_time_embed_dim) = 0;
  TORCH_ARG(int64_t, projection_class_embeddings_input_dim) = 0;
  TORCH_ARG(int64_t, downsample_padding) = 1;
  TORCH_ARG(double, mid_block_scale_factor) = 1;
  TORCH_ARG(double, dropout) = 0;
  TORCH_ARG(int64_t, norm_num_groups) = 32;
  TORCH_ARG(double, norm_eps) = 1e-5;
  TORCH_ARG(int64_t, conv_in_kernel) = 3;
  TORCH_ARG(int64_t, conv_out_kernel) = 3;
};

/// Sines and cosines of timesteps at frequencies 10000^(-i / (dim/2 - freq_shift)).
/// Shapes: timesteps (B), result (B, dim) in fp32 on the timesteps' device
at::Tensor timestep_embedding(const at::Tensor& timesteps, int64_t dim, bool flip_sin_to_cos,
                              double freq_shift);

/// Two-layer perceptron over timestep embeddings.
/// Equation: linear_2(silu(linear_1(x))).
/// Shapes: x (B, in), result (B, out)
class TimestepEmbeddingImpl : public torch::nn::Cloneable<TimestepEmbeddingImpl> {
 public:
  TimestepEmbeddingImpl(int64_t in, int64_t out);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::Linear linear_1{nullptr}, linear_2{nullptr};

 private:
  int64_t in_;
  int64_t out_;
};
TORCH_MODULE(TimestepEmbedding);

/// What a UNet with `text_time` is told beside the text's states: diffusers' added_cond_kwargs.
struct AddedConditions {
  torch::Tensor text_embeds;  ///< the pooled text, (B, projection)
  /// Original height and width, top and left of the crop, target height and width, (B, 6).
  torch::Tensor time_ids;

  bool defined() const { return text_embeds.defined() || time_ids.defined(); }
};

/// The noise predictor of Stable Diffusion 1.x and 2.x and of SDXL, with diffusers' parameter names.
/// Papers: Rombach et al. 2022, arXiv:2112.10752; SDXL: Podell et al. 2023, arXiv:2307.01952
/// Shapes: sample (B, in_channels, H, W), timesteps (B) or a scalar,
///         encoder_hidden_states (B, T, cross_attention_dim), or (B, transformers, T, ...) with a
///         text for each of `attention_names()`; result (B, out_channels, H, W)
///         With `text_time`, emb = time_embedding(t) + add_embedding([text_embeds, waves(time_ids)])
/// Dtypes: sample, text and weights in one floating dtype; timesteps and time_ids in any
/// Errors: c10::Error if the inputs' shapes do not fit the options, or if conditions are given or
///         missing against them
/// Either memory format of the sample runs through the whole model; give the weights the same one
/// (`to_channels_last`). H and W need not divide by the total downsampling.
class UNet2DConditionModelImpl : public torch::nn::Cloneable<UNet2DConditionModelImpl> {
 public:
  explicit UNet2DConditionModelImpl(UNet2DConditionModelOptions options = {});
  void reset() override;

  at::Tensor forward(const at::Tensor& sample, const at::Tensor& timesteps,
                     const at::Tensor& encoder_hidden_states, const AddedConditions& added = {});

  /// AttentionImpl::group_projections everywhere: on a GPU, where launching a kernel costs more
  /// than a projection computes, a third of the kernels.
  void group_projections();

  /// The transformers that read the text, in the order of a forward pass, such as
  /// "down_blocks.0.attentions.0": 16 in Stable Diffusion 1.x.
  std::vector<std::string> attention_names() const;

  UNet2DConditionModelOptions options;
  torch::nn::Conv2d conv_in{nullptr}, conv_out{nullptr};
  TimestepEmbedding time_embedding{nullptr};
  TimestepEmbedding add_embedding{nullptr};  ///< with `text_time`
  torch::nn::ModuleList down_blocks, up_blocks;
  UNetMidBlock mid_block{nullptr};
  torch::nn::GroupNorm conv_norm_out{nullptr};
  /// What `forward` computes from instead, if anything; see sd::pack_weights.
  lightlora::PackedWeights packed;
  /// ResnetBlock2DImpl::use_winograd everywhere; the maps in between are then channels last.
  void use_winograd();

 private:
  bool uses_winograd_ = false;
  int64_t time_embed_dim() const;
  ResnetBlock2DOptions resnet_options(int64_t in, int64_t out) const;
  Transformer2DModelOptions transformer_options(size_t level) const;
  /// Of the UNet's blocks in the order of a forward pass: down, mid, up.
  int64_t attentions_before(size_t block) const;
  UNetBlockOptions down_block_options(size_t level) const;
  UNetBlockOptions mid_block_options() const;
  UNetBlockOptions up_block_options(size_t i) const;

  /// silu of the embedding of timesteps and conditions, as the resnets want it: (B, time_embed_dim).
  at::Tensor embed_time(const at::Tensor& sample, const at::Tensor& timesteps,
                        const AddedConditions& added);
  at::Tensor embed_conditions(const AddedConditions& added, at::ScalarType dtype);
  void check_inputs(const at::Tensor& sample, const at::Tensor& timesteps,
                    const at::Tensor& context) const;
  void check_added(const at::Tensor& sample, const AddedConditions& added) const;
};
TORCH_MODULE(UNet2DConditionModel);

}  // namespace sd
