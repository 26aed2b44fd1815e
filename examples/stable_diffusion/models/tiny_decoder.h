// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sd {

/// Sizes of a TinyDecoder, with diffusers' defaults for AutoencoderTiny.
struct TinyDecoderOptions {
  /// How many pixels one latent stands for in each direction.
  int64_t upsampling() const { return int64_t{1} << (blocks_.size() - 1); }

  TORCH_ARG(int64_t, latent_channels) = 4;
  TORCH_ARG(int64_t, width) = 64;
  /// Blocks before each doubling of the size, and behind the last one.
  TORCH_ARG(std::vector<int64_t>, blocks) = { 3, 3, 3, 1 };
  /// Latents of the UNet are divided by this first.
  TORCH_ARG(double, scaling_factor) = 1.0;
};

/// The decoder of TAESD, a small stand-in for the autoencoder's: a picture in a small part of the
/// time and memory, good enough to see where a drawing goes. As diffusers' AutoencoderTiny.
/// Source:   https://github.com/madebyollin/taesd
/// Equation: layers(3 tanh(latents / 3)): a convolution, then residual blocks of three convolutions
///           with ReLU, the size doubled by repeating pixels between them
/// Shapes:   latents (B, C, h, w) as the UNet knows them, result (B, 3, 8 h, 8 w) about [0, 1] with
///           the usual four groups of blocks
class TinyDecoderImpl : public torch::nn::Cloneable<TinyDecoderImpl> {
 public:
  explicit TinyDecoderImpl(TinyDecoderOptions options = {});
  void reset() override;

  at::Tensor forward(const at::Tensor& latents);

  TinyDecoderOptions options;
  torch::nn::Sequential layers{nullptr};
};
TORCH_MODULE(TinyDecoder);

/// Reads `taesd_decoder.safetensors` (or .pth) as its authors publish it, or a folder or file of
/// diffusers' AutoencoderTiny, whose encoder is passed over. The sizes follow from the tensors. In
/// evaluation mode, without gradients, in fp32 on the CPU.
/// Errors: c10::Error naming the file if it is no such decoder
TinyDecoder read_tiny_decoder(const std::string& path);

}  // namespace sd
