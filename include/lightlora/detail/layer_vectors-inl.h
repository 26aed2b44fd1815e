// SPDX-License-Identifier: Apache-2.0
#pragma once

// The vectors beside the weights of layers: norms and biases.
#include <lightlora/detail/layer_weights.h>

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <memory>
#include <vector>

namespace lightlora {

namespace detail {

template <typename Norm>
bool add_norm(std::vector<LayerWeight>& found, const std::shared_ptr<torch::nn::Module>& module) {
  auto* norm = dynamic_cast<Norm*>(module.get());
  if (!norm) return false;
  const auto add = [&](torch::Tensor& vector, const char* part) {
    if (!vector.defined() || vector.dim() != 1) return;
    found.emplace_back(module, vector, "Norm", LayerKind::vector, part);
  };
  add(norm->weight, "weight");
  add(norm->bias, "bias");
  return true;
}

template <typename Layer>
bool add_bias(std::vector<LayerWeight>& found, const std::shared_ptr<torch::nn::Module>& module) {
  auto* layer = dynamic_cast<Layer*>(module.get());
  if (!layer) return false;
  if (layer->bias.defined()) {
    found.emplace_back(module, layer->bias, "Bias", LayerKind::vector, "bias");
  }
  return true;
}

}  // namespace detail

LIGHTLORA_INLINE std::vector<LayerWeight> find_vectors(
    const std::shared_ptr<torch::nn::Module>& module) {
  using detail::add_bias;
  namespace nn = torch::nn;
  std::vector<LayerWeight> found;
  detail::add_norm<nn::LayerNormImpl>(found, module) ||
      detail::add_norm<nn::GroupNormImpl>(found, module) ||
      add_bias<nn::LinearImpl>(found, module) || add_bias<nn::Conv1dImpl>(found, module) ||
      add_bias<nn::Conv2dImpl>(found, module) || add_bias<nn::Conv3dImpl>(found, module) ||
      add_bias<nn::ConvTranspose1dImpl>(found, module) ||
      add_bias<nn::ConvTranspose2dImpl>(found, module) ||
      add_bias<nn::ConvTranspose3dImpl>(found, module);
  return found;
}

}  // namespace lightlora
