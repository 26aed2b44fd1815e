// SPDX-License-Identifier: Apache-2.0
#include "models/vae.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/group_norm_silu.h"
#include "models/attention.h"
#include "models/bands.h"

namespace sd {

namespace {

constexpr double kEps = 1e-6;  // diffusers fixes it for all normalisations of the autoencoder

torch::nn::ModuleList resnet_list(const std::vector<ResnetBlock2DOptions>& options) {
  torch::nn::ModuleList list;
  for (const auto& resnet : options) list->push_back(ResnetBlock2D(resnet));
  return list;
}

}  // namespace

DiagonalGaussianDistribution::DiagonalGaussianDistribution(const at::Tensor& moments) {
  const auto halves = moments.chunk(2, /*dim=*/1);
  mean_ = halves[0];
  logvar_ = halves[1].clamp(-30.0, 20.0);
}

at::Tensor DiagonalGaussianDistribution::std() const { return at::exp(0.5 * logvar_); }

at::Tensor DiagonalGaussianDistribution::sample(
    const std::optional<at::Generator>& generator) const {
  // A generator draws on its own device, so that a CPU seed means the same for every device.
  const auto device = generator && generator->defined() ? generator->device() : mean_.device();
  const auto noise = at::randn(mean_.sizes(), generator, mean_.options().device(device));
  return sample(noise.to(mean_.device()));
}

at::Tensor DiagonalGaussianDistribution::sample(const at::Tensor& noise) const {
  TORCH_CHECK(noise.sizes() == mean_.sizes(), "'AutoencoderKL': expected noise of shape ",
              mean_.sizes(), ", got ", noise.sizes());
  return mean_ + std() * noise;
}

VaeAttentionImpl::VaeAttentionImpl(int64_t channels, int64_t groups)
    : channels_(channels), groups_(groups) {
  reset();
}

void VaeAttentionImpl::reset() {
  group_norm = register_module("group_norm", make_group_norm(groups_, channels_, kEps));
  to_q = register_module("to_q", torch::nn::Linear(channels_, channels_));
  to_k = register_module("to_k", torch::nn::Linear(channels_, channels_));
  to_v = register_module("to_v", torch::nn::Linear(channels_, channels_));
  to_out = register_module("to_out", torch::nn::ModuleList());
  to_out->push_back(torch::nn::Linear(channels_, channels_));
}

at::Tensor VaeAttentionImpl::forward(const at::Tensor& x) {
  const at::Tensor tokens = to_tokens(sd::group_norm(*group_norm, x));
  const at::Tensor result =
      attention(linear(*to_q, tokens), linear(*to_k, tokens), linear(*to_v, tokens),
                /*heads=*/1, /*upcast=*/false);
  return add_to(to_map(linear(to_out->at<torch::nn::LinearImpl>(0), result), x), x);
}

VaeBlockImpl::VaeBlockImpl(std::vector<ResnetBlock2DOptions> resnets, VaeSampler sampler)
    : resnet_options_(std::move(resnets)), sampler_kind_(sampler) {
  reset();
}

void VaeBlockImpl::reset() {
  const int64_t channels = resnet_options_.back().out_channels();
  resnets_ = register_module("resnets", resnet_list(resnet_options_));
  if (sampler_kind_ == VaeSampler::down) {
    samplers_ = register_module("downsamplers", torch::nn::ModuleList());
    samplers_->push_back(Downsample2D(channels, /*padding=*/0));
  } else if (sampler_kind_ == VaeSampler::up) {
    samplers_ = register_module("upsamplers", torch::nn::ModuleList());
    samplers_->push_back(Upsample2D(channels));
  }
}

at::Tensor VaeBlockImpl::forward(at::Tensor x) {
  for (size_t i = 0; i < resnets_->size(); ++i) {
    x = run_segment(resnets_->at<ResnetBlock2DImpl>(i), x, at::Tensor());
  }
  if (sampler_kind_ == VaeSampler::down) return samplers_->at<Downsample2DImpl>(0).forward(x);
  if (sampler_kind_ == VaeSampler::none) return x;
  auto& up = samplers_->at<Upsample2DImpl>(0);
  if (const int64_t rows = rows_of_band(x, 4 * x.size(1))) return enlarge_conv(up.conv, x, rows);
  return up.forward(x, 2 * x.size(2), 2 * x.size(3));
}

VaeMidBlockImpl::VaeMidBlockImpl(ResnetBlock2DOptions resnet, bool add_attention)
    : resnet_options_(resnet), add_attention_(add_attention) {
  reset();
}

void VaeMidBlockImpl::reset() {
  if (add_attention_) {
    attentions_ = register_module("attentions", torch::nn::ModuleList());
    attentions_->push_back(VaeAttention(resnet_options_.out_channels(), resnet_options_.groups()));
  }
  resnets_ = register_module("resnets", resnet_list({resnet_options_, resnet_options_}));
}

at::Tensor VaeMidBlockImpl::forward(at::Tensor x) {
  x = run_segment(resnets_->at<ResnetBlock2DImpl>(0), x, at::Tensor());
  if (add_attention_) x = run_segment(attentions_->at<VaeAttentionImpl>(0), x);
  return run_segment(resnets_->at<ResnetBlock2DImpl>(1), x, at::Tensor());
}

VaeHalfImpl::VaeHalfImpl(AutoencoderKLOptions options, Kind kind)
    : options_(std::move(options)), kind_(kind) {
  reset();
}

ResnetBlock2DOptions VaeHalfImpl::resnet_options(int64_t in, int64_t out) const {
  return ResnetBlock2DOptions(in, out).groups(options_.norm_num_groups()).eps(kEps);
}

void VaeHalfImpl::add_levels(std::vector<int64_t> channels, int64_t layers, VaeSampler sampler) {
  int64_t in = channels.front();
  for (size_t level = 0; level < channels.size(); ++level) {
    std::vector<ResnetBlock2DOptions> resnets;
    for (int64_t i = 0; i < layers; ++i) {
      resnets.push_back(resnet_options(i == 0 ? in : channels[level], channels[level]));
    }
    const bool last = level + 1 == channels.size();
    blocks->push_back(VaeBlock(resnets, last ? VaeSampler::none : sampler));
    in = channels[level];
  }
}

void VaeHalfImpl::reset() {
  const bool encodes = kind_ == Kind::encoder;
  std::vector<int64_t> channels = options_.block_out_channels();
  const int64_t deepest = channels.back();
  if (!encodes) std::reverse(channels.begin(), channels.end());
  const int64_t in = encodes ? options_.in_channels() : options_.latent_channels();
  const int64_t out = encodes ? 2 * options_.latent_channels() : options_.out_channels();

  conv_in = register_module("conv_in", make_conv(in, channels.front(), /*kernel=*/3));
  blocks = register_module(encodes ? "down_blocks" : "up_blocks", torch::nn::ModuleList());
  add_levels(channels, options_.layers_per_block() + (encodes ? 0 : 1),
             encodes ? VaeSampler::down : VaeSampler::up);
  mid_block = register_module("mid_block", VaeMidBlock(resnet_options(deepest, deepest),
                                                       options_.mid_block_add_attention()));
  conv_norm_out = register_module(
      "conv_norm_out", make_group_norm(options_.norm_num_groups(), channels.back(), kEps));
  conv_out = register_module("conv_out", make_conv(channels.back(), out, /*kernel=*/3));
}

at::Tensor VaeHalfImpl::forward(const at::Tensor& input) {
  at::Tensor x = conv_in(input);
  if (kind_ == Kind::decoder) x = mid_block(x);
  for (size_t i = 0; i < blocks->size(); ++i) x = blocks->at<VaeBlockImpl>(i).forward(x);
  if (kind_ == Kind::encoder) x = mid_block(x);
  const int64_t rows = rows_of_band(x, x.size(1));
  if (rows > 0) return norm_silu_conv(conv_norm_out, conv_out, x, rows);
  return conv_out(norm_silu(conv_norm_out, x));
}

AutoencoderKLImpl::AutoencoderKLImpl(AutoencoderKLOptions options_) : options(std::move(options_)) {
  options.check("AutoencoderKL");
  reset();
}

void AutoencoderKLImpl::reset() {
  const int64_t latent = options.latent_channels();
  encoder = register_module("encoder", VaeHalf(options, VaeHalfImpl::Kind::encoder));
  decoder = register_module("decoder", VaeHalf(options, VaeHalfImpl::Kind::decoder));
  if (options.use_quant_conv()) {
    quant_conv = register_module("quant_conv", make_conv(2 * latent, 2 * latent, /*kernel=*/1));
  }
  if (options.use_post_quant_conv()) {
    post_quant_conv = register_module("post_quant_conv", make_conv(latent, latent, /*kernel=*/1));
  }
}

DiagonalGaussianDistribution AutoencoderKLImpl::encode(const at::Tensor& pictures) {
  const int64_t step = options.downsampling();
  TORCH_CHECK(pictures.dim() == 4 && pictures.size(1) == options.in_channels() &&
                  pictures.size(2) >= step && pictures.size(3) >= step,
              "'AutoencoderKL': expected pictures (B, ", options.in_channels(),
              ", H, W) of at least ", step, " by ", step, " pixels, got ", pictures.sizes());
  const auto moments = [this](const at::Tensor& x) {
    const at::Tensor y = encoder(x);
    return quant_conv ? quant_conv(y) : y;
  };
  const int64_t side = latent_tile() * step;
  const bool tiles = tiling_ && (pictures.size(2) > side || pictures.size(3) > side);
  return DiagonalGaussianDistribution(tiles ? in_tiles(pictures, side, latent_tile(), moments)
                                            : moments(pictures));
}

at::Tensor AutoencoderKLImpl::decode(const at::Tensor& latents) {
  TORCH_CHECK(latents.dim() == 4 && latents.size(1) == options.latent_channels(),
              "'AutoencoderKL': expected latents (B, ", options.latent_channels(), ", h, w), got ",
              latents.sizes());
  const auto pictures = [this](const at::Tensor& x) {
    return decoder(post_quant_conv ? post_quant_conv(x) : x);
  };
  const int64_t side = latent_tile();
  const bool tiles = tiling_ && (latents.size(2) > side || latents.size(3) > side);
  return tiles ? in_tiles(latents, side, side * options.downsampling(), pictures)
               : pictures(latents);
}

at::Tensor AutoencoderKLImpl::forward(const at::Tensor& pictures) {
  return decode(encode(pictures).mode());
}

std::string vae_legacy_name(const std::string& name) {
  if (name.find(".attentions.") == std::string::npos) return name;
  static const std::array<std::pair<const char*, const char*>, 4> kNames{
      {{".query.", ".to_q."},
       {".key.", ".to_k."},
       {".value.", ".to_v."},
       {".proj_attn.", ".to_out.0."}}};
  for (const auto& [old_name, new_name] : kNames) {
    const size_t at = name.rfind(old_name);
    if (at == std::string::npos) continue;
    return std::string(name).replace(at, std::string(old_name).size(), new_name);
  }
  return name;
}

}  // namespace sd
