// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/interception.h>
#include <lightlora/detail/layer_weights.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lightlora {

/// One torch layer and one adapter as a single module, for models one writes oneself.
/// Equation: y = layer(x) with weight + delta in place of the weight
/// Shapes:   those of the layer
/// Dtypes:   any floating dtype; the adapter stays fp32 (fp64 over an fp64 layer) when a model that
///           holds this is cast to half precision
/// The children are `base` (frozen) and `adapter`. `AdapterImpl` is one of the variants' modules.
template <typename Layer, typename AdapterImpl>
class AdaptedLayerImpl : public torch::nn::Module {
 public:
  /// `name` takes part in naming the frozen bases; layers of one shape should differ in it.
  /// Options of another variant do not compile.
  /// Errors: c10::ValueError for options that do not fit the layer
  template <typename Options = LoRAOptions,
            std::enable_if_t<detail::takes_options<AdapterImpl, Options>, int> = 0>
  explicit AdaptedLayerImpl(Layer layer, const Options& options = {}, std::string name = "") {
    base = register_module("base", std::move(layer));
    for (auto& parameter : base->parameters()) parameter.set_requires_grad(false);
    const auto weights = find_weights(base.ptr());
    TORCH_CHECK_VALUE(weights.size() == 1, "'", name, "': expected a layer with one weight among ",
                      adaptable_types(), ", got ", base->name(),
                      "; hint: patch() adapts models with any of them");
    adapter = register_module(
        "adapter",
        std::make_shared<AdapterImpl>(LoRAOptions(options), weights[0].info(std::move(name))));
    fit(*adapter, weights[0]);
  }

  /// The layer with its adapter.
  torch::Tensor forward(const torch::Tensor& x) {
    const detail::ActiveScope on(table());
    return base->forward(x);
  }

  /// A deep copy with the same flags and modes.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    auto base_copy = std::dynamic_pointer_cast<typename Layer::ContainedType>(base->clone(device));
    auto copy = std::make_shared<AdaptedLayerImpl>(Layer(std::move(base_copy)), adapter->options(),
                                                   adapter->layer().name);
    torch::NoGradGuard no_grad;
    const auto copy_values = [](const NamedTensors& from, const NamedTensors& to) {
      for (const auto& item : from) {
        to[item.key()].copy_(item.value());
        to[item.key()].set_requires_grad(item.value().requires_grad());
      }
    };
    copy_values(base->named_parameters(), copy->base->named_parameters());
    copy_values(adapter->trained(), copy->adapter->trained());
    copy_values(adapter->frozen(), copy->adapter->frozen());
    copy->adapter->set_scale(adapter->scale());
    copy->train(is_training());
    copy->base->train(base->is_training());
    copy->adapter->train(adapter->is_training());
    return copy;
  }

  /// The adapter's description.
  void pretty_print(std::ostream& stream) const override { adapter->pretty_print(stream); }

  Layer base{nullptr};                   ///< the layer, frozen
  std::shared_ptr<AdapterImpl> adapter;  ///< what is trained

 private:
  // How a parent that is Cloneable copies its children: into modules that its `reset()` has made.
  void clone_(torch::nn::Module& other, const std::optional<torch::Device>& device) override {
    const auto copy = std::dynamic_pointer_cast<AdaptedLayerImpl>(other.clone(device));
    TORCH_CHECK(copy, "expected a child of one type in both copies of a module, got '",
                other.name(), "' in place of '", name(),
                "'; hint: reset() must make the same children");
    base = Layer(std::dynamic_pointer_cast<typename Layer::ContainedType>(
        replace_module("base", copy->base.ptr())));
    adapter = replace_module("adapter", copy->adapter);
    table_ = nullptr;
    train(copy->is_training());
    base->train(copy->base->is_training());
    adapter->train(copy->adapter->is_training());
  }

  std::shared_ptr<const detail::ActiveTable> table() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!table_ || !table_->holds()) {
      auto made = std::make_shared<detail::ActiveTable>(this);
      made->add(make_site(adapter->layer().name, find_weights(base.ptr())[0], {{adapter, 1.0}},
                          std::make_shared<SiteState>()));
      table_ = std::move(made);
    }
    return table_;
  }

  std::mutex mutex_;  // several threads may call one layer
  std::shared_ptr<const detail::ActiveTable> table_;
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
