// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/winograd.h"
#include "models/gradient_checkpointing.h"
#include "models/streaming.h"

namespace sd {

/// segment.forward(values[0], values[1], ...)
template <typename Segment, size_t... Index>
at::Tensor apply_segment(Segment& segment, const std::vector<at::Tensor>& values,
                         std::index_sequence<Index...>) {
  const auto result = segment.forward(values[Index]...);
  let_go_of_weights();
  return result;
}

/// Calls one segment of a model: a resnet or a transformer. Every block calls its segments through
/// here, so that gradient checkpointing and streamed weights have a single place; switched off they
/// cost nothing.
template <typename Segment, typename... Inputs>
at::Tensor run_segment(Segment& segment, const Inputs&... inputs) {
  if (!GradientCheckpointing::enabled()) {
    return apply_segment(segment, {inputs...}, std::index_sequence_for<Inputs...>());
  }
  return recomputed(
      [&segment](const std::vector<at::Tensor>& values) {
        return apply_segment(segment, values, std::index_sequence_for<Inputs...>());
      },
      {inputs...});
}

/// fresh + x, where nothing else holds `fresh`: its memory is used again if autograd allows.
/// In place under autograd would make CopySlices nodes, since a Linear's result is a view.
inline at::Tensor add_to(at::Tensor fresh, const at::Tensor& x) {
  return fresh.requires_grad() ? at::add(fresh, x) : fresh.add_(x);
}

/// silu(norm(x)), what precedes every convolution of a resnet; on a CPU in one pass.
/// Shapes: x (B, C, H, W) in either memory format, result the same
at::Tensor norm_silu(torch::nn::GroupNorm& norm, const at::Tensor& x);

/// x weight^T + bias in one operator: torch::nn::Linear itself goes over its result once more to add
/// the bias where x has three dimensions.
/// Shapes: x (..., in), result (..., out)
at::Tensor linear(const torch::nn::LinearImpl& layer, const at::Tensor& x);

/// A torch::nn::Conv2d with a bias, kernel size `kernel` and half of it as padding.
torch::nn::Conv2d make_conv(int64_t in, int64_t out, int64_t kernel);

/// A torch::nn::GroupNorm with weight and bias.
torch::nn::GroupNorm make_group_norm(int64_t groups, int64_t channels, double eps);

/// Lays out every 4-D parameter of a model as channels last, in place: what `Module::to` lacks.
/// Give the model channels-last inputs afterwards. Meant for CUDA: on a CPU the convolutions gain a
/// twentieth in bf16 and nothing in fp32.
void to_channels_last(torch::nn::Module& module);

/// Sizes of one ResnetBlock2D.
struct ResnetBlock2DOptions {
  ResnetBlock2DOptions(int64_t in_channels, int64_t out_channels)
      : in_channels_(in_channels), out_channels_(out_channels) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  /// Width of the time embedding; 0: the block has none. Default: 0.
  TORCH_ARG(int64_t, temb_channels) = 0;
  /// Groups of both normalisations. Default: 32.
  TORCH_ARG(int64_t, groups) = 32;
  /// Default: 1e-6.
  TORCH_ARG(double, eps) = 1e-6;
  /// Default: 0.
  TORCH_ARG(double, dropout) = 0;
  /// What the sum is divided by. Default: 1.
  TORCH_ARG(double, output_scale_factor) = 1;
};

/// Residual block of two convolutions.
/// Equation: h = conv1(silu(norm1(x))) + time_emb_proj(silu(temb));
///           y = (shortcut(x) + conv2(dropout(silu(norm2(h))))) / output_scale_factor
/// Shapes:   x (B, in, H, W), activated_temb (B, temb_channels), y (B, out, H, W)
/// Differs from diffusers: takes silu(temb) instead of temb, because all resnets of a UNet share it
class ResnetBlock2DImpl : public torch::nn::Cloneable<ResnetBlock2DImpl> {
 public:
  explicit ResnetBlock2DImpl(ResnetBlock2DOptions options);
  void reset() override;

  /// `activated_temb` may be undefined for a block without time embedding.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& activated_temb);
  /// Has `winograd_convolution` compute where it can, for more memory.
  void use_winograd();

  ResnetBlock2DOptions options;
  torch::nn::GroupNorm norm1{nullptr}, norm2{nullptr};
  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr}, conv_shortcut{nullptr};
  torch::nn::Linear time_emb_proj{nullptr};

 private:
  std::shared_ptr<WinogradKernels> kernels1_, kernels2_;
};
TORCH_MODULE(ResnetBlock2D);

/// Strided convolution to half the size.
/// Shapes: x (B, C, H, W), result (B, C, ceil(H/2), ceil(W/2)) with padding 1
/// With padding 0 one row and one column of zeros follow the picture, as diffusers has it.
class Downsample2DImpl : public torch::nn::Cloneable<Downsample2DImpl> {
 public:
  Downsample2DImpl(int64_t channels, int64_t padding);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  torch::nn::Conv2d conv{nullptr};

 private:
  int64_t channels_;
  int64_t padding_;
};
TORCH_MODULE(Downsample2D);

/// Nearest-neighbour enlargement and a convolution.
/// Shapes: x (B, C, H, W), result (B, C, height, width)
class Upsample2DImpl : public torch::nn::Cloneable<Upsample2DImpl> {
 public:
  explicit Upsample2DImpl(int64_t channels);
  void reset() override;

  at::Tensor forward(const at::Tensor& x, int64_t height, int64_t width);
  /// Has `winograd_convolution` compute where it can, for more memory.
  void use_winograd();

  torch::nn::Conv2d conv{nullptr};

 private:
  int64_t channels_;
  std::shared_ptr<WinogradKernels> kernels_;
};
TORCH_MODULE(Upsample2D);

}  // namespace sd
