// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace lightlora {

/// A part of a model: tensors in, one tensor out.
using Segment = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// Gradient checkpointing of one segment: `segment(inputs)`, of which the backward pass keeps the
/// inputs alone and computes the rest again: about a third more time for a fraction of the memory.
/// Gradients are those of the plain call, also of parameters that the segment uses; the random
/// state, autocast and the active adapters are those of the first run. A segment that draws no
/// random numbers can do without the random state (`preserve_rng_state`), which a CUDA graph that
/// is being recorded does not give out.
/// Paper:  Chen et al. 2016, arXiv:1604.06174
/// Shapes: as `segment` has them; inputs may be undefined, but not all
/// Errors: c10::ValueError if no input is defined
at::Tensor recompute(Segment segment, const std::vector<at::Tensor>& inputs,
                     bool preserve_rng_state = true);

/// The same of one tensor, for weights that are bound too (`bind_weights`): they are bound again
/// for the second run, unless the activation is still alive then.
/// Shapes: x and the result as `segment` has them
template <typename Function>
torch::Tensor checkpoint(const Patched& lora, Function segment, const torch::Tensor& x) {
  const bool active = lora->is_active();
  return recompute(
      [lora, active, segment = std::move(segment)](const std::vector<torch::Tensor>& inputs) {
        std::optional<Activation> on;
        if (active) on.emplace(lora->activate());
        return segment(inputs[0]);
      },
      {x});
}

/// A patched model and its adapters as one module, whose clones are adapted too, by copies of the
/// adapters. A plain clone of a patched model is the base alone; this is for what clones models, such
/// as LibTorch's data_parallel, through which gradients come back to the adapters of `lora`:
///
///     lightlora::AdaptedModel<Net> whole(net, lora);
///     auto y = torch::nn::parallel::data_parallel(whole, x);
///
/// The children are `base` and `adapters`. `Holder` is the model's holder.
template <typename Holder>
class AdaptedModelImpl : public torch::nn::Module {
 public:
  /// `lora` are the adapters of `model`.
  AdaptedModelImpl(Holder model, Patched lora)
      : base(register_module("base", std::move(model))), lora_(std::move(lora)) {
    const auto adapters = register_module("adapters", torch::nn::ModuleList());
    for (const auto& set : lora_->sets()) {
      for (const auto& adapter : lora_->adapters(set)) {
        adapters->push_back(adapter->module().shared_from_this());
      }
    }
  }

  /// The model with its active adapters.
  template <typename... Inputs>
  auto forward(Inputs&&... inputs) {
    return lora_(base, std::forward<Inputs>(inputs)...);
  }

  /// A deep copy with adapters of its own.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    Holder model(std::dynamic_pointer_cast<typename Holder::ContainedType>(base->clone(device)));
    Patched lora;
    for (const auto& set : lora_->sets()) {
      const AdapterState state = lora_->state(set, Bases::embedded);
      if (lora) {
        lora->add(set, state);
      } else {
        lora = patch(*model, state, set);
      }
    }
    lora->set_active(lora_->active());
    if (device) lora->to(*device);
    auto copy = std::make_shared<AdaptedModelImpl>(std::move(model), std::move(lora));
    copy->train(is_training());
    return copy;
  }

  Holder base{nullptr};  ///< the model

 private:
  Patched lora_;
};

/// Module holder of AdaptedModelImpl.
template <typename Holder>
class AdaptedModel : public torch::nn::ModuleHolder<AdaptedModelImpl<Holder>> {
 public:
  using torch::nn::ModuleHolder<AdaptedModelImpl<Holder>>::ModuleHolder;
};

/// Parameter groups for an optimiser that trains the output side faster (LoRA+).
/// Equation: rate(up side) = ratio * rate(everything else)
/// Paper:    Hayou et al. 2024, "LoRA+", arXiv:2402.12354
///
/// `options` are those of the optimizer, such as `torch::optim::AdamWOptions(1e-4)`; PEFT and
/// sd-scripts suggest a ratio of 16. DoRA's magnitudes, and variants with one core, take the lower
/// rate.
/// Errors: c10::ValueError unless ratio > 0
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> param_groups(const Patched& lora, Options options,
                                                            double ratio) {
  TORCH_CHECK_VALUE(ratio > 0, "expected a ratio > 0, got ", ratio);
  std::vector<torch::Tensor> up, others;
  for (const auto& name : lora->sets()) {
    for (const auto& adapter : lora->adapters(name)) {
      for (const auto& item : adapter->trained()) {
        (adapter->is_up_side(item.key()) ? up : others).push_back(item.value());
      }
    }
  }
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](std::vector<torch::Tensor> tensors) {
    if (!tensors.empty())
      groups.emplace_back(std::move(tensors), std::make_unique<Options>(options));
  };
  add(std::move(others));
  options.lr(options.lr() * ratio);
  add(std::move(up));
  return groups;
}

/// Makes many leaf tensors views of one flat buffer, and their gradients views of another, so that
/// an optimiser, clipping, zeroing and an all-reduce touch one tensor each instead of hundreds.
/// The tensors stay the same objects; a backward pass adds into the flat gradient. They share the
/// version counter of `values()`: an in-place change of the flat buffer is seen by whoever watches
/// a parameter. (`at::_fused_adamw_` bumps no counter: call `changed()` after it.)
///
///     ParameterBank bank(lora->parameters());
///     loss.backward();
///     bank.clip(1.0);
///     at::_fused_adamw_({bank.values()}, {bank.gradients()}, ...);
///     bank.changed();
///     bank.zero_gradients();
class ParameterBank {
 public:
  /// Errors: c10::ValueError if there are none; c10::Error unless all have one dtype and device
  explicit ParameterBank(const std::vector<at::Tensor>& parameters);

  /// All values, one after the other, in the order of the parameters.
  const at::Tensor& values() const { return values_; }
  /// Their gradients, likewise.
  const at::Tensor& gradients() const { return gradients_; }
  /// In place: the parameters' gradients stay views of the flat one.
  void zero_gradients() { gradients_.zero_(); }

  /// Tells whoever watches the parameters' versions that the values were written to.
  void changed() { values_.unsafeGetTensorImpl()->bump_version(); }

  /// Scales the gradients down so that their L2 norm is at most `max_norm`, and returns the norm
  /// they had as a tensor without dimensions: nothing waits for a GPU. No clipping if max_norm <=
  /// 0.
  at::Tensor clip(double max_norm);

 private:
  at::Tensor values_, gradients_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/train-inl.h>
#endif
