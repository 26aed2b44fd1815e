// SPDX-License-Identifier: Apache-2.0
#include "models/blocks.h"

#include <ATen/ATen.h>

#include <limits>
#include <utility>

#include "kernels/group_norm_silu.h"
#include "models/bands.h"

namespace sd {

at::Tensor norm_silu(torch::nn::GroupNorm& norm, const at::Tensor& x) {
  return group_norm_silu(*norm, x);
}

at::Tensor linear(const torch::nn::LinearImpl& layer, const at::Tensor& x) {
  return at::linear(x, layer.weight, layer.bias);
}

torch::nn::Conv2d make_conv(int64_t in, int64_t out, int64_t kernel) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, kernel).padding((kernel - 1) / 2));
}

torch::nn::GroupNorm make_group_norm(int64_t groups, int64_t channels, double eps) {
  return torch::nn::GroupNorm(torch::nn::GroupNormOptions(groups, channels).eps(eps));
}

void to_channels_last(torch::nn::Module& module) {
  for (auto& parameter : module.parameters()) {
    if (parameter.dim() != 4) continue;
    parameter.set_data(parameter.detach().contiguous(at::MemoryFormat::ChannelsLast));
  }
}

ResnetBlock2DImpl::ResnetBlock2DImpl(ResnetBlock2DOptions options_) : options(std::move(options_)) {
  reset();
}

void ResnetBlock2DImpl::reset() {
  const int64_t in = options.in_channels(), out = options.out_channels();
  norm1 = register_module("norm1", make_group_norm(options.groups(), in, options.eps()));
  conv1 = register_module("conv1", make_conv(in, out, /*kernel=*/3));
  if (options.temb_channels() > 0) {
    time_emb_proj =
        register_module("time_emb_proj", torch::nn::Linear(options.temb_channels(), out));
  }
  norm2 = register_module("norm2", make_group_norm(options.groups(), out, options.eps()));
  conv2 = register_module("conv2", make_conv(out, out, /*kernel=*/3));
  if (in != out) {
    conv_shortcut = register_module("conv_shortcut", make_conv(in, out, /*kernel=*/1));
  }
}

at::Tensor ResnetBlock2DImpl::forward(const at::Tensor& x, const at::Tensor& activated_temb) {
  // Only the autoencoder, whose blocks know no time, sees maps of the size of pictures.
  const int64_t rows = time_emb_proj ? 0 : rows_of_band(x, options.out_channels());
  if (rows > 0 && options.output_scale_factor() == 1) {
    const at::Tensor hidden = norm_silu_conv(norm1, conv1, x, rows);
    return add_shortcut(norm_silu_conv(norm2, conv2, hidden, rows), conv_shortcut, x, rows);
  }
  at::Tensor hidden = winograd_convolution(*conv1, norm_silu(norm1, x), kernels1_.get());
  if (time_emb_proj) {
    const at::Tensor shift = linear(*time_emb_proj, activated_temb);
    hidden = add_to(std::move(hidden), shift.unsqueeze(-1).unsqueeze(-1));
  }
  hidden = group_norm_silu_of(*norm2, std::move(hidden));
  if (options.dropout() > 0) hidden = at::dropout(hidden, options.dropout(), is_training());
  hidden = add_to(winograd_convolution(*conv2, hidden, kernels2_.get()),
                  conv_shortcut ? conv_shortcut(x) : x);
  return options.output_scale_factor() == 1 ? hidden : hidden / options.output_scale_factor();
}

void ResnetBlock2DImpl::use_winograd() {
  kernels1_ = std::make_shared<WinogradKernels>();
  kernels2_ = std::make_shared<WinogradKernels>();
}

Downsample2DImpl::Downsample2DImpl(int64_t channels, int64_t padding)
    : channels_(channels), padding_(padding) {
  reset();
}

void Downsample2DImpl::reset() {
  conv = register_module(
      "conv", torch::nn::Conv2d(
                  torch::nn::Conv2dOptions(channels_, channels_, 3).stride(2).padding(padding_)));
}

at::Tensor Downsample2DImpl::forward(const at::Tensor& x) {
  return conv(padding_ == 0 ? at::constant_pad_nd(x, {0, 1, 0, 1}) : x);
}

Upsample2DImpl::Upsample2DImpl(int64_t channels) : channels_(channels) { reset(); }

void Upsample2DImpl::reset() { conv = register_module("conv", make_conv(channels_, channels_, 3)); }

at::Tensor Upsample2DImpl::forward(const at::Tensor& x, int64_t height, int64_t width) {
  // The channels-last CUDA kernel refuses results of 2^31 elements and more (pytorch#141831).
  const bool huge =
      x.size(0) * x.size(1) * height * width > int64_t{std::numeric_limits<int32_t>::max()};
  return winograd_convolution(
      *conv, at::upsample_nearest2d(huge ? x.contiguous() : x, {height, width}), kernels_.get());
}

void Upsample2DImpl::use_winograd() { kernels_ = std::make_shared<WinogradKernels>(); }

}  // namespace sd
