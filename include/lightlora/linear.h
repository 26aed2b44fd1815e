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

/// A `torch::nn::Linear` that can pack its weight.
/// Equation: y = x weight^T + bias
/// Shapes:   x (..., in), y (..., out)
class LinearImpl : public torch::nn::LinearImpl, public Packable {
 public:
  using torch::nn::LinearImpl::LinearImpl;

  /// x weight^T + bias, from the packed weight where that can be.
  torch::Tensor forward(const torch::Tensor& x);

  /// A copy that can pack too.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;
};
TORCH_MODULE(Linear);

/// A `torch::nn::Conv2d` that can pack its kernels.
/// Shapes: x (batch, in, height, width)
class Conv2dImpl : public torch::nn::Conv2dImpl, public Packable {
 public:
  using torch::nn::Conv2dImpl::Conv2dImpl;

  /// The convolution, from the packed kernels where that can be.
  torch::Tensor forward(const torch::Tensor& x);

  /// A copy that can pack too.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;
};
TORCH_MODULE(Conv2d);

/// Lays the weights of several linear layers one behind the other in one piece of memory, so that
/// `linear_group` can take them in one product. They stay parameters of their own: loading, saving,
/// merging and adapting go on as before. Moving or casting a layer undoes it; call this afterwards.
/// Errors: c10::ValueError unless the layers have the same inputs, dtype and device
void group_weights(const std::vector<torch::nn::LinearImpl*>& layers);

/// Several linear layers of one input, such as to_q, to_k and to_v, in one product: three kernels
/// forward instead of nine with adapters on them, one instead of three without.
/// Equation: y_i = layers[i](x)
/// Shapes:   x (..., in), y_i (..., out_i)
/// Layers that `group_weights` has not laid out, with a bias or a weight that trains are called one
/// by one, and adapters with dropout, without factors or without gradients are applied one by one.
std::vector<at::Tensor> linear_group(const at::Tensor& x,
                                     const std::vector<torch::nn::LinearImpl*>& layers);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/linear-inl.h>
#endif
