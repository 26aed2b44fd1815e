// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/packing.h>

#include <ATen/ATen.h>
#include <torch/nn/modules/conv.h>

#include <mutex>
#include <string_view>
#include <type_traits>
#include <variant>

namespace lightlora {

// The weights with their copies, and the table that was made of them last.
struct PackedWeights::Copies {
  struct Item {
    LayerWeight weight;
    std::shared_ptr<const PackedWeight> packed;
  };
  std::vector<Item> items;
  std::mutex mutex;
  std::shared_ptr<const detail::PackedTable> table;
};

LIGHTLORA_INLINE PackedWeights
pack_weights(torch::nn::Module& model,
             const std::function<bool(const std::string&, const torch::Tensor&)>& chooses) {
  PackedWeights packed;
  packed.copies_ = std::make_shared<PackedWeights::Copies>();
  for (const auto& [path, weight] : adaptable_layers(model).weights) {
    const bool fits = weight.kind() == LayerKind::linear ||
                      (weight.kind() == LayerKind::convolution && weight.tensor().dim() == 4);
    if (!fits || (chooses && !chooses(path, weight.tensor()))) continue;
    packed.copies_->items.push_back({weight, std::make_shared<PackedWeight>()});
  }
  return packed;
}

LIGHTLORA_INLINE Packing PackedWeights::activate() const {
  Packing packing;
  if (size() == 0) return packing;
  const std::lock_guard<std::mutex> lock(copies_->mutex);
  auto& table = copies_->table;
  if (!table || !table->holds()) {
    const auto fresh = std::make_shared<detail::PackedTable>();
    for (const auto& item : copies_->items) {
      fresh->add({item.weight, item.weight.tensor(), item.packed});
    }
    table = fresh;
  }
  packing.scope_.emplace(table);
  return packing;
}

LIGHTLORA_INLINE std::size_t PackedWeights::size() const {
  return copies_ ? copies_->items.size() : 0;
}

namespace detail {

// Whether a convolution is one of those that are computed in eight bits.
inline bool is_plain_convolution(const torch::nn::Module& module) {
  const auto* layer = dynamic_cast<const torch::nn::Conv2dImpl*>(&module);
  if (!layer) return false;
  const auto& options = layer->options;
  const auto* padding = std::get_if<torch::ExpandingArray<2>>(&options.padding());
  if (!padding || !std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode())) {
    return false;
  }
  for (size_t i = 0; i < 2; ++i) {
    if ((*options.stride())[i] != 1 || (*options.dilation())[i] != 1) return false;
    if ((**padding)[i] >= (*options.kernel_size())[i]) return false;
  }
  return options.groups() == 1;
}

// Whether a convolution calls its operator with numbers, not with words for its padding.
inline bool has_numeric_padding(const torch::nn::Module& module) {
  const auto numeric = [](const auto* layer) {
    return layer && std::visit(
                        [](const auto& padding) {
                          using Kind = std::decay_t<decltype(padding)>;
                          return !std::is_same_v<Kind, torch::enumtype::kValid> &&
                                 !std::is_same_v<Kind, torch::enumtype::kSame>;
                        },
                        layer->options.padding());
  };
  return numeric(dynamic_cast<const torch::nn::Conv1dImpl*>(&module)) ||
         numeric(dynamic_cast<const torch::nn::Conv2dImpl*>(&module)) ||
         numeric(dynamic_cast<const torch::nn::Conv3dImpl*>(&module));
}

// Whether the layer calls an operator with its whole weight, so that fewer bits are an advantage.
inline bool takes_quantised(const LayerWeight& weight, WeightFormat format) {
  const bool int8 = format == WeightFormat::int8;
  const torch::Tensor& tensor = weight.tensor();
  if (!weight.is_member()) return false;
  if (!(int8 ? Int8Weight::fits(tensor) : FourBitWeight::fits(tensor))) return false;
  if (!tensor.is_cpu() && !tensor.is_cuda()) return false;
  if (weight.kind() == LayerKind::linear) return std::string_view(weight.type()) == "Linear";
  if (weight.kind() != LayerKind::convolution) return false;
  return int8 ? is_plain_convolution(*weight.layer()) : has_numeric_padding(*weight.layer());
}

// What stands for a weight from now on.
inline torch::Tensor in_fewer_bits(const torch::Tensor& full, const QuantizeOptions& options) {
  if (options.format() == WeightFormat::int8) {
    return QuantisedWeight::stand_in(c10::make_intrusive<Int8Weight>(full));
  }
  return QuantisedWeight::stand_in(
      c10::make_intrusive<FourBitWeight>(full, options.double_quant()));
}

}  // namespace detail

LIGHTLORA_INLINE std::size_t quantize(
    torch::nn::Module& model,
    const std::function<bool(const std::string&, const torch::Tensor&)>& chooses,
    const QuantizeOptions& options) {
  std::size_t count = 0;
  for (const auto& [path, weight] : adaptable_layers(model).weights) {
    torch::Tensor& tensor = weight.tensor();
    if (!detail::takes_quantised(weight, options.format())) continue;
    if (chooses && !chooses(path, tensor)) continue;
    const torch::Tensor given = options.source() ? options.source()(path, tensor) : tensor;
    TORCH_CHECK(given.sizes() == tensor.sizes() && given.scalar_type() == tensor.scalar_type(), "'",
                path, "': expected a weight ", tensor.sizes(), " in ", tensor.scalar_type(),
                " from the source, got ", given.sizes(), " in ", given.scalar_type());
    tensor.set_requires_grad(false);
    tensor.set_data(is_quantized(given) ? given : detail::in_fewer_bits(given, options));
    ++count;
  }
  return count;
}

LIGHTLORA_INLINE std::size_t dequantize(torch::nn::Module& model) {
  std::size_t count = 0;
  for (const auto& [path, weight] : adaptable_layers(model).weights) {
    torch::Tensor& tensor = weight.tensor();
    const QuantisedWeight* held = QuantisedWeight::of(tensor);
    if (!held) continue;
    tensor.set_data(held->dense());
    ++count;
  }
  return count;
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
    for (const auto* layer : layers) {
      const auto bias =
          layer->bias.defined() ? std::optional<at::Tensor>(layer->bias) : std::nullopt;
      results.push_back(at::linear(x, layer->weight, bias));
    }
    return results;
  }
  std::vector<int64_t> widths;
  for (const auto* layer : layers) widths.push_back(layer->weight.size(0));
  return at::linear(x, detail::grouped_weight(layers)).split_with_sizes(widths, /*dim=*/-1);
}

}  // namespace lightlora
