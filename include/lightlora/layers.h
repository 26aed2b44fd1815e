// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/layer_weights.h>
#include <lightlora/detail/low_rank_linear.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lightlora {

/// One torch layer and one adapter as a single module, for models one writes oneself.
/// Equation: y = layer(x) with weight + delta in place of the weight
/// Shapes:   those of the layer
/// The children are `base` (frozen) and `adapter`. `AdapterImpl` is one of the variants' modules.
template <typename Layer, typename AdapterImpl>
class AdaptedLayerImpl : public torch::nn::Module {
 public:
  /// `name` takes part in naming the frozen bases; layers of one shape should differ in it.
  /// Errors: c10::ValueError for options that do not fit the layer, or with a dropout unless the
  ///         layer is a Linear
  explicit AdaptedLayerImpl(Layer layer, LoRAOptions options = {}, std::string name = "") {
    base = register_module("base", std::move(layer));
    freeze_base();
    const auto weights = find_weights(base.ptr());
    TORCH_CHECK_VALUE(weights.size() == 1, "lightlora: '", name,
                      "': expected a layer with one weight among ", adaptable_types(), ", got ",
                      base->name(), "; hint: patch() adapts models with any of them");
    const LayerWeight& weight = weights[0];
    adapter = register_module("adapter", std::make_shared<AdapterImpl>(
                                             std::move(options), weight.info(std::move(name))));
    if constexpr (!kIsLinear) require_no_dropout(*adapter);
    fit(*adapter, weight);
  }

  /// The layer with its adapter.
  torch::Tensor forward(const torch::Tensor& x) {
    if constexpr (kIsLinear) {
      const std::vector<ActiveAdapter> active{{adapter, 1.0}};
      const bool dropping = any_dropout(active);
      if (dropping || !adapter->has_factors()) {
        return linear_by_parts(x, base->weight, bias(), active, dropping);
      }
      return low_rank_linear(x, base->weight, bias(), adapter->factors(), adapter->scale(),
                             adapter->layer().name);
    } else {
      const LayerWeight weight = find_weights(base.ptr())[0];
      const WeightBinding bound(weight, adapter->delta(weight.matrix()), adapter->layer().name);
      return base->forward(x);
    }
  }

  /// A deep copy, with its base frozen as here.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    auto base_copy = std::dynamic_pointer_cast<typename Layer::ContainedType>(base->clone(device));
    auto copy = std::make_shared<AdaptedLayerImpl>(Layer(std::move(base_copy)), adapter->options(),
                                                   adapter->layer().name);
    torch::NoGradGuard no_grad;
    const auto copy_values = [](const NamedTensors& from, const NamedTensors& to) {
      for (const auto& item : from) to[item.key()].copy_(item.value());
    };
    copy_values(adapter->trained(), copy->adapter->trained());
    copy_values(adapter->frozen(), copy->adapter->frozen());
    copy->adapter->set_scale(adapter->scale());
    return copy;
  }

  /// The adapter's description.
  void pretty_print(std::ostream& stream) const override { adapter->pretty_print(stream); }

  Layer base{nullptr};                   ///< the layer, frozen
  std::shared_ptr<AdapterImpl> adapter;  ///< what is trained

 private:
  static constexpr bool kIsLinear =
      std::is_base_of_v<torch::nn::LinearImpl, typename Layer::ContainedType>;

  std::optional<torch::Tensor> bias() const {
    return base->bias.defined() ? std::optional<torch::Tensor>(base->bias) : std::nullopt;
  }

  void freeze_base() {
    for (auto& parameter : base->parameters()) parameter.set_requires_grad(false);
  }
};

/// Module holder of AdaptedLayerImpl; `ClassicLoRA<Layer>` and the other variants are this.
template <typename Layer, typename AdapterImpl>
class AdaptedLayer : public torch::nn::ModuleHolder<AdaptedLayerImpl<Layer, AdapterImpl>> {
 public:
  /// The module.
  using Impl = AdaptedLayerImpl<Layer, AdapterImpl>;
  /// The variant's module.
  using AdapterType = AdapterImpl;
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
};

}  // namespace lightlora
