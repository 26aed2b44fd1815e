// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/linear_group.h>

#include <ATen/ATen.h>
#include <lightlora/low_rank_linear.h>

#include <optional>

namespace lightlora {

namespace detail {

using LinearLayers = std::vector<LinearImpl*>;

// Whether the weights lie one behind the other, as `group_weights` leaves them.
inline bool are_grouped(const LinearLayers& layers) {
  const at::Tensor& first = layers[0]->weight;
  const char* next = static_cast<const char*>(first.const_data_ptr());
  for (const auto* layer : layers) {
    const at::Tensor& weight = layer->weight;
    if (weight.const_data_ptr() != next || !weight.is_contiguous() || !weight.is_alias_of(first) ||
        weight.size(1) != first.size(1) || weight.scalar_type() != first.scalar_type() ||
        weight.requires_grad() || layer->bias.defined()) {
      return false;
    }
    next += weight.nbytes();
  }
  return true;
}

// All weights as one matrix, without a copy.
inline at::Tensor grouped_weight(const LinearLayers& layers) {
  const at::Tensor& first = layers[0]->weight;
  int64_t rows = 0;
  for (const auto* layer : layers) rows += layer->weight.size(0);
  return first.detach().as_strided({rows, first.size(1)}, {first.size(1), 1});
}

// Whether each layer adds factors, or none adds anything: what one product can carry.
inline bool adapters_can_be_grouped(const LinearLayers& layers) {
  const bool empty = layers[0]->active_adapters().empty();
  for (const auto* layer : layers) {
    const auto& active = layer->active_adapters();
    if (active.empty() != empty) return false;
    if (empty) continue;
    // Without gradients each layer has kept its merged weight or its factors.
    if (!at::GradMode::is_enabled() || !all_have_factors(active) || any_dropout(active) ||
        layer->route() != layers[0]->route()) {
      return false;
    }
  }
  return true;
}

// One set of factors for all layers: down stacked, up block by block along the diagonal, with the
// scales in it. Shapes: down (sum of r, in), up (sum of out, sum of r)
inline Factors grouped_factors(const LinearLayers& layers) {
  std::vector<at::Tensor> downs, ups;
  for (const auto* layer : layers) {
    const auto [factors, scale] = total_factors(layer->active_adapters());
    downs.push_back(factors.down);
    ups.push_back(factors.up * scale);
  }
  return {at::cat(downs, 0), at::block_diag(ups)};
}

}  // namespace detail

LIGHTLORA_INLINE void group_weights(const std::vector<LinearImpl*>& layers) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights;
  for (const auto* layer : layers) {
    const at::Tensor &first = layers[0]->weight, &weight = layer->weight;
    TORCH_CHECK_VALUE(
        weight.size(1) == first.size(1) && weight.options().type_equal(first.options()),
        "lightlora::group_weights: expected layers with ", first.size(1), " inputs in ",
        first.scalar_type(), " on ", first.device(), ", got one with ", weight.size(1), " in ",
        weight.scalar_type(), " on ", weight.device());
    weights.push_back(weight);
  }
  const at::Tensor all = at::cat(weights);
  int64_t row = 0;
  for (auto* layer : layers) {
    const int64_t rows = layer->weight.size(0);
    layer->weight.set_data(all.narrow(0, row, rows));
    row += rows;
  }
}

LIGHTLORA_INLINE std::vector<at::Tensor> linear_group(const at::Tensor& x,
                                                      const std::vector<LinearImpl*>& layers) {
  std::vector<at::Tensor> results;
  if (!detail::are_grouped(layers) || !detail::adapters_can_be_grouped(layers)) {
    for (auto* layer : layers) results.push_back(layer->forward(x));
    return results;
  }
  const at::Tensor weight = detail::grouped_weight(layers);
  std::vector<int64_t> widths;
  for (const auto* layer : layers) widths.push_back(layer->weight.size(0));
  const bool adapted = !layers[0]->active_adapters().empty();
  const at::Tensor all =
      adapted ? low_rank_linear(x, weight, std::nullopt, detail::grouped_factors(layers),
                                /*scale=*/1, "linear_group", layers[0]->route())
              : at::linear(x, weight);
  return all.split_with_sizes(widths, /*dim=*/-1);
}

}  // namespace lightlora
