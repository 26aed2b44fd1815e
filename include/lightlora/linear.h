// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/layer_weights.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <vector>

namespace lightlora {

/// A `torch::nn::Linear` with a slot for adapters: for models that one writes oneself.
/// Equation: y = x (weight + sum of deltas)^T + bias, the deltas as low-rank products
/// Shapes:   x (..., in), y (..., out)
/// Dtypes:   any floating dtype; adapters may stay fp32 over a bf16 or fp16 weight
/// With an empty slot it is `torch::nn::Linear` and costs the same.
class LinearImpl : public torch::nn::LinearImpl, public AdapterSlot {
 public:
  using torch::nn::LinearImpl::LinearImpl;

  /// x weight^T + bias, and what the active adapters add.
  torch::Tensor forward(const torch::Tensor& x);

  /// A copy that is a drop-in layer too, with an empty slot.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  torch::Tensor merged();
};
TORCH_MODULE(Linear);

/// A `torch::nn::Conv2d` with a slot for adapters.
/// Equation: y = conv(x; weight) + scale * conv1x1(conv(x; down); up)
/// Shapes:   x (batch, in, height, width), down as kernels (r, in, kh, kw), up (out, r, 1, 1)
/// Grouped convolutions, other paddings than zeros and variants without factors take the weight plus
/// its delta instead.
class Conv2dImpl : public torch::nn::Conv2dImpl, public AdapterSlot {
 public:
  using torch::nn::Conv2dImpl::Conv2dImpl;

  /// The convolution, and what the active adapters add.
  torch::Tensor forward(const torch::Tensor& x);

  /// A copy that is a drop-in layer too, with an empty slot.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  // The convolution without adapters. Kernels of one pixel are a plain product, which packing
  // slows.
  torch::Tensor base(const torch::Tensor& x);

  bool pads_zeros() const;

  // As `linear_by_parts`.
  torch::Tensor forward_by_parts(const torch::Tensor& x, bool dropping);

  // The convolution without its bias.
  torch::Tensor convolve(const torch::Tensor& x, const torch::Tensor& kernels) const;

  torch::Tensor summed();
  torch::Tensor merged();
};
TORCH_MODULE(Conv2d);

/// Lays the weights of several linear layers one behind the other in one piece of memory, so that
/// `linear_group` can take them in one product. They stay parameters of their own: loading, saving,
/// merging and adapting go on as before. Moving or casting a layer undoes it; call this afterwards.
/// Errors: c10::ValueError unless the layers have the same inputs, dtype and device
void group_weights(const std::vector<LinearImpl*>& layers);

/// Several linear layers of one input, such as to_q, to_k and to_v, in one product: three kernels
/// forward instead of nine with adapters on them, one instead of three without.
/// Equation: y_i = layers[i](x)
/// Shapes:   x (..., in), y_i (..., out_i)
/// Layers that `group_weights` has not laid out, with a bias, a weight that trains, dropout or
/// variants without factors, and adapted ones without gradients are called one by one.
std::vector<at::Tensor> linear_group(const at::Tensor& x, const std::vector<LinearImpl*>& layers);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/linear-inl.h>
#endif
