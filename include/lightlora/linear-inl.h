// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/linear.h>

#include <ATen/ATen.h>
#include <lightlora/detail/interception.h>

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
  const PackedWeight* const packed = packed_for(x, weight, bias_or_none);
  if (!packed || is_adapted(weight)) return at::linear(x, weight, bias_or_none);
  return packed_linear(x, weight, bias_or_none, *packed);
}

LIGHTLORA_INLINE std::shared_ptr<torch::nn::Module> LinearImpl::clone(
    const std::optional<torch::Device>& device) const {
  return detail::copy_values(*this, std::make_shared<LinearImpl>(options), device);
}

// Kernels of one pixel are a plain product, which packing slows.
LIGHTLORA_INLINE torch::Tensor Conv2dImpl::forward(const torch::Tensor& x) {
  const auto bias_or_none = bias.defined() ? std::optional<torch::Tensor>(bias) : std::nullopt;
  const PackedWeight* const packed = packed_for(x, weight, bias_or_none);
  const auto* const padding = std::get_if<torch::ExpandingArray<2>>(&options.padding());
  const bool zeros = std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode());
  const bool fits = packed && padding && x.dim() == 4 && options.groups() == 1 && zeros &&
                    weight.size(2) * weight.size(3) > 1 && !is_adapted(weight);
  if (!fits) return _conv_forward(x, weight);
  return packed_conv2d(x, weight, bias_or_none, *packed, *options.stride(), **padding,
                       *options.dilation());
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

namespace detail {

using LinearLayers = std::vector<torch::nn::LinearImpl*>;

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

}  // namespace detail

LIGHTLORA_INLINE void group_weights(const std::vector<torch::nn::LinearImpl*>& layers) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights;
  for (const auto* layer : layers) {
    const at::Tensor &first = layers[0]->weight, &weight = layer->weight;
    TORCH_CHECK_VALUE(
        weight.size(1) == first.size(1) && weight.options().type_equal(first.options()),
        "expected layers with ", first.size(1), " inputs in ", first.scalar_type(), " on ",
        first.device(), ", got one with ", weight.size(1), " in ", weight.scalar_type(), " on ",
        weight.device());
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

LIGHTLORA_INLINE std::vector<at::Tensor> linear_group(
    const at::Tensor& x, const std::vector<torch::nn::LinearImpl*>& layers) {
  if (!detail::are_grouped(layers)) {
    std::vector<at::Tensor> results;
    for (auto* layer : layers) {
      auto* const packable = dynamic_cast<LinearImpl*>(layer);
      const auto bias =
          layer->bias.defined() ? std::optional<at::Tensor>(layer->bias) : std::nullopt;
      results.push_back(packable ? packable->forward(x) : at::linear(x, layer->weight, bias));
    }
    return results;
  }
  std::vector<int64_t> widths;
  for (const auto* layer : layers) widths.push_back(layer->weight.size(0));
  return at::linear(x, detail::grouped_weight(layers)).split_with_sizes(widths, /*dim=*/-1);
}

}  // namespace lightlora
