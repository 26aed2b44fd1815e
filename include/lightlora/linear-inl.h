// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/linear.h>

#include <ATen/ATen.h>
#include <lightlora/detail/low_rank_linear-inl.h>
#include <lightlora/detail/low_rank_linear.h>
#include <torch/nn/functional/conv.h>
#include <torch/nn/functional/padding.h>

#include <optional>
#include <variant>

namespace lightlora {

namespace detail {

// Copies values and flags into a new layer: torch's own clone would make a plain torch layer of it.
template <typename Impl>
std::shared_ptr<torch::nn::Module> copy_values(const Impl& from, std::shared_ptr<Impl> to,
                                               const std::optional<torch::Device>& device) {
  const auto targets = to->named_parameters();
  for (const auto& item : from.named_parameters()) {
    torch::Tensor target = targets[item.key()];
    target.set_data(item.value().detach().clone().to(device.value_or(item.value().device())));
    target.set_requires_grad(item.value().requires_grad());
  }
  to->train(from.is_training());
  to->set_packed(from.is_packed());
  return to;
}

}  // namespace detail

LIGHTLORA_INLINE torch::Tensor LinearImpl::forward(const torch::Tensor& x) {
  const auto bias_or_none = bias.defined() ? std::optional<torch::Tensor>(bias) : std::nullopt;
  if (active_adapters().empty()) {
    const PackedWeight* const packed = packed_for(x, weight, bias_or_none);
    return packed ? packed_linear(x, weight, bias_or_none, *packed)
                  : at::linear(x, weight, bias_or_none);
  }
  if (takes_merged_once(*this, weight, x)) return at::linear(x, merged(), bias_or_none);
  const bool dropping = is_training() && any_dropout(active_adapters());
  if (dropping || !all_have_factors(active_adapters())) {
    return linear_by_parts(x, weight, bias_or_none, active_adapters(), dropping);
  }
  const auto [factors, scale] = composed_factors();
  return low_rank_linear(x, weight, bias_or_none, factors, scale,
                         active_adapters()[0].adapter->layer().name, route(), packed());
}

LIGHTLORA_INLINE std::shared_ptr<torch::nn::Module> LinearImpl::clone(
    const std::optional<torch::Device>& device) const {
  return detail::copy_values(*this, std::make_shared<LinearImpl>(options), device);
}

LIGHTLORA_INLINE torch::Tensor LinearImpl::merged() {
  return merged_once(weight, [&] {
    return LayerWeight(shared_from_this(), weight, "Linear")
        .plus(total_delta(active_adapters(), weight));
  });
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::forward(const torch::Tensor& x) {
  if (active_adapters().empty()) return base(x);
  if (takes_merged_once(*this, weight, x)) return _conv_forward(x, merged());
  const bool dropping = is_training() && any_dropout(active_adapters());
  if (dropping || !all_have_factors(active_adapters()) || options.groups() != 1 || !pads_zeros()) {
    return forward_by_parts(x, dropping);
  }
  const auto [factors, scale] = composed_factors();
  const int64_t rank = factors.down.size(0);
  const auto down = factors.down.to(x.scalar_type())
                        .reshape({rank, weight.size(1), weight.size(2), weight.size(3)});
  const auto up = factors.up.to(x.scalar_type()).reshape({weight.size(0), rank, 1, 1});
  const auto hidden = torch::nn::functional::detail::conv2d(
      x, down, /*bias=*/{}, options.stride(), options.padding(), options.dilation(), 1);
  return at::add(base(x), at::conv2d(hidden, up), scale);
}

LIGHTLORA_INLINE std::shared_ptr<torch::nn::Module> Conv2dImpl::clone(
    const std::optional<torch::Device>& device) const {
  // torch keeps the options as those of any convolution, which no constructor takes.
  const auto same =
      torch::nn::Conv2dOptions(options.in_channels(), options.out_channels(), options.kernel_size())
          .stride(options.stride())
          .padding(options.padding())
          .dilation(options.dilation())
          .groups(options.groups())
          .bias(options.bias())
          .padding_mode(options.padding_mode());
  return detail::copy_values(*this, std::make_shared<Conv2dImpl>(same), device);
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::base(const torch::Tensor& x) {
  const auto bias_or_none = bias.defined() ? std::optional<torch::Tensor>(bias) : std::nullopt;
  const PackedWeight* const packed = packed_for(x, weight, bias_or_none);
  const auto* const padding = std::get_if<torch::ExpandingArray<2>>(&options.padding());
  const bool fits = packed && padding && x.dim() == 4 && options.groups() == 1 && pads_zeros() &&
                    weight.size(2) * weight.size(3) > 1;
  if (!fits) return _conv_forward(x, weight);
  return packed_conv2d(x, weight, bias_or_none, *packed, *options.stride(), **padding,
                       *options.dilation());
}

LIGHTLORA_INLINE bool Conv2dImpl::pads_zeros() const {
  return std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode());
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::forward_by_parts(const torch::Tensor& x, bool dropping) {
  const LayerWeight view(shared_from_this(), weight, "Conv2d");
  if (!dropping && !detail::autocast_dtype(x) && !at::isReducedFloatingType(x.scalar_type())) {
    return _conv_forward(x, summed());
  }
  torch::Tensor y = base(x);
  for (const auto& item : active_adapters()) {
    const torch::Tensor kernels = view.shaped(item.adapter->delta(view.matrix()));
    y = at::add(y, convolve(dropping ? adapter_input(item, x) : x, kernels.to(x.scalar_type())),
                item.weight);
  }
  return y;
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::convolve(const torch::Tensor& x,
                                                    const torch::Tensor& kernels) const {
  namespace F = torch::nn::functional;
  if (pads_zeros()) {
    return F::detail::conv2d(x, kernels, /*bias=*/{}, options.stride(), options.padding(),
                             options.dilation(), options.groups());
  }
  F::PadFuncOptions padding(_reversed_padding_repeated_twice);
  if (std::holds_alternative<torch::enumtype::kReflect>(options.padding_mode())) {
    padding.mode(torch::kReflect);
  } else if (std::holds_alternative<torch::enumtype::kReplicate>(options.padding_mode())) {
    padding.mode(torch::kReplicate);
  } else {
    padding.mode(torch::kCircular);
  }
  return F::detail::conv2d(F::pad(x, padding), kernels, /*bias=*/{}, options.stride(),
                           /*padding=*/0, options.dilation(), options.groups());
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::summed() {
  const LayerWeight view(shared_from_this(), weight, "Conv2d");
  return view.plus(total_delta(active_adapters(), view.matrix()));
}

LIGHTLORA_INLINE torch::Tensor Conv2dImpl::merged() {
  return merged_once(weight, [&] { return summed(); });
}

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
