// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "models/blocks.h"

namespace sd {

/// Sizes and switches of an AutoencoderKL, with diffusers' names and defaults.
struct AutoencoderKLOptions {
  /// Reads diffusers' `vae/config.json`; `source` is the file's name in messages.
  /// Errors: c10::ValueError naming the field and its value for whatever is wrong or unsupported
  static AutoencoderKLOptions from_json(const nlohmann::json& config,
                                        const std::string& source = "vae/config.json");

  /// Throws c10::ValueError if the options do not fit together.
  void check(const std::string& source) const;

  /// How many pixels one latent stands for in each direction.
  int64_t downsampling() const { return int64_t{1} << (block_out_channels_.size() - 1); }

  TORCH_ARG(int64_t, in_channels) = 3;
  TORCH_ARG(int64_t, out_channels) = 3;
  TORCH_ARG(std::vector<std::string>, down_block_types) = { "DownEncoderBlock2D" };
  TORCH_ARG(std::vector<std::string>, up_block_types) = { "UpDecoderBlock2D" };
  TORCH_ARG(std::vector<int64_t>, block_out_channels) = { 64 };
  TORCH_ARG(int64_t, layers_per_block) = 1;
  TORCH_ARG(int64_t, latent_channels) = 4;
  TORCH_ARG(int64_t, norm_num_groups) = 32;
  /// Height and width of the pictures that the model was made for.
  TORCH_ARG(std::vector<int64_t>, sample_size) = { 32, 32 };
  /// Latents times this have about unit variance; the UNet sees those.
  TORCH_ARG(double, scaling_factor) = 0.18215;
  /// The model wants fp32 at large sizes even if the rest runs in half precision.
  TORCH_ARG(bool, force_upcast) = true;
  TORCH_ARG(bool, use_quant_conv) = true;
  TORCH_ARG(bool, use_post_quant_conv) = true;
  TORCH_ARG(bool, mid_block_add_attention) = true;
};

/// What a picture may be as a latent: a normal distribution with a diagonal covariance.
/// Shapes: moments (B, 2 C, h, w): means, then logarithms of variances (kept in [-30, 20])
class DiagonalGaussianDistribution {
 public:
  explicit DiagonalGaussianDistribution(const at::Tensor& moments);

  const at::Tensor& mean() const { return mean_; }
  const at::Tensor& logvar() const { return logvar_; }
  /// The most likely latent: the mean.
  const at::Tensor& mode() const { return mean_; }
  at::Tensor std() const;
  /// mean + std * noise with unit normal noise from the generator (none: torch's default one).
  at::Tensor sample(const std::optional<at::Generator>& generator = std::nullopt) const;
  /// mean + std * noise.
  /// Shapes: noise as the mean
  at::Tensor sample(const at::Tensor& noise) const;

 private:
  at::Tensor mean_, logvar_;
};

/// Self-attention of one head over the pixels of a feature map, around a residual.
/// Equation: y = x + to_out.0(attention(to_q(n), to_k(n), to_v(n))), n = group_norm(x)
/// Shapes:   x (B, C, H, W), y the same
class VaeAttentionImpl : public torch::nn::Cloneable<VaeAttentionImpl> {
 public:
  VaeAttentionImpl(int64_t channels, int64_t groups);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::GroupNorm group_norm{nullptr};
  torch::nn::Linear to_q{nullptr}, to_k{nullptr}, to_v{nullptr};
  torch::nn::ModuleList to_out;

 private:
  int64_t channels_;
  int64_t groups_;
};
TORCH_MODULE(VaeAttention);

/// What a level of the encoder or decoder ends in.
enum class VaeSampler { none, down, up };

/// Level of the encoder or decoder: resnets, then a change of size.
/// DownEncoderBlock2D and UpDecoderBlock2D.
class VaeBlockImpl : public torch::nn::Cloneable<VaeBlockImpl> {
 public:
  VaeBlockImpl(std::vector<ResnetBlock2DOptions> resnets, VaeSampler sampler);
  void reset() override;

  at::Tensor forward(at::Tensor x);

 private:
  std::vector<ResnetBlock2DOptions> resnet_options_;
  VaeSampler sampler_kind_;
  torch::nn::ModuleList resnets_, samplers_;
};
TORCH_MODULE(VaeBlock);

/// Resnet, attention (if asked for), resnet: UNetMidBlock2D.
/// Shapes: x (B, C, H, W), result the same
class VaeMidBlockImpl : public torch::nn::Cloneable<VaeMidBlockImpl> {
 public:
  VaeMidBlockImpl(ResnetBlock2DOptions resnet, bool add_attention);
  void reset() override;

  at::Tensor forward(at::Tensor x);

 private:
  ResnetBlock2DOptions resnet_options_;
  bool add_attention_;
  torch::nn::ModuleList resnets_, attentions_;
};
TORCH_MODULE(VaeMidBlock);

/// Half of the autoencoder. Shapes of the encoder: (B, in_channels, H, W) to (B, 2 latent, h, w);
/// of the decoder: (B, latent, h, w) to (B, out_channels, H, W).
class VaeHalfImpl : public torch::nn::Cloneable<VaeHalfImpl> {
 public:
  enum class Kind { encoder, decoder };
  VaeHalfImpl(AutoencoderKLOptions options, Kind kind);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::Conv2d conv_in{nullptr}, conv_out{nullptr};
  torch::nn::ModuleList blocks;
  VaeMidBlock mid_block{nullptr};
  torch::nn::GroupNorm conv_norm_out{nullptr};

 private:
  ResnetBlock2DOptions resnet_options(int64_t in, int64_t out) const;
  void add_levels(std::vector<int64_t> channels, int64_t layers, VaeSampler sampler);

  AutoencoderKLOptions options_;
  Kind kind_;
};
TORCH_MODULE(VaeHalf);

/// The autoencoder between pictures and latents, with diffusers' parameter names.
/// Paper:  Rombach et al. 2022, arXiv:2112.10752
/// Shapes: pictures (B, 3, H, W) in [-1, 1]; latents (B, 4, h, w), h = H / downsampling.
///         Latents here are the autoencoder's own: times `scaling_factor` they are the UNet's.
/// Errors: c10::Error if the channels do not fit, or the picture is smaller than one latent
class AutoencoderKLImpl : public torch::nn::Cloneable<AutoencoderKLImpl> {
 public:
  explicit AutoencoderKLImpl(AutoencoderKLOptions options = {});
  void reset() override;

  DiagonalGaussianDistribution encode(const at::Tensor& pictures);
  at::Tensor decode(const at::Tensor& latents);
  /// decode(encode(pictures).mode())
  at::Tensor forward(const at::Tensor& pictures);

  /// Whether pictures larger than the model's own size go through it in tiles of that size, which
  /// overlap by a quarter and fade into each other: memory no longer grows with the picture, but
  /// colours may drift between tiles. As diffusers' enable_tiling. Default: false
  void enable_tiling(bool on = true) { tiling_ = on; }

  AutoencoderKLOptions options;
  VaeHalf encoder{nullptr}, decoder{nullptr};
  torch::nn::Conv2d quant_conv{nullptr}, post_quant_conv{nullptr};

 private:
  int64_t latent_tile() const;

  bool tiling_ = false;
};
TORCH_MODULE(AutoencoderKL);

/// `transform` over overlapping tiles of x (B, C, H, W), put together; a tile of `tile` becomes one
/// of `result_tile`, both multiples of four.
at::Tensor in_tiles(const at::Tensor& x, int64_t tile, int64_t result_tile,
                    const std::function<at::Tensor(const at::Tensor&)>& transform);

/// The module's parameter name for a name in an old file, which calls the attention's weights
/// `query`, `key`, `value` and `proj_attn`; other names stay as they are.
std::string vae_legacy_name(const std::string& name);

}  // namespace sd
