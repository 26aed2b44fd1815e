// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lightlora {

/// An adapter that takes part in a forward pass, with its weight in the sum.
struct ActiveAdapter {
  std::shared_ptr<const Adapter> adapter;
  double weight = 1.0;
};

/// Sum of the deltas of several adapters of one layer, each times its weight in the sum.
/// Shapes: the layer's weight as a matrix (out, in), and so the result
inline torch::Tensor total_delta(const std::vector<ActiveAdapter>& active,
                                 const torch::Tensor& weight) {
  torch::Tensor sum;
  for (const auto& [adapter, share] : active) {
    const torch::Tensor delta = adapter->delta(weight);
    const torch::Tensor shared = share == 1.0 ? delta : delta * share;
    sum = sum.defined() ? sum + shared : shared;
  }
  return sum;
}

/// Whether some of these adapters leave out inputs in training.
inline bool any_dropout(const std::vector<ActiveAdapter>& active) {
  return std::any_of(active.begin(), active.end(), [](const ActiveAdapter& item) {
    return item.adapter->options().dropout() > 0 && item.adapter->module().is_training();
  });
}

/// Whether `total_factors` can be had: each of these adapters has factors.
inline bool all_have_factors(const std::vector<ActiveAdapter>& active) {
  return std::all_of(active.begin(), active.end(),
                     [](const ActiveAdapter& item) { return item.adapter->has_factors(); });
}

/// Factors and scale of the sum of several adapters of one layer, all of which have factors.
inline std::pair<Factors, double> total_factors(const std::vector<ActiveAdapter>& active) {
  if (active.size() == 1) {
    return {active[0].adapter->factors(), active[0].adapter->scale() * active[0].weight};
  }
  std::vector<Factors> factors;
  std::vector<double> scales;
  for (const auto& [adapter, weight] : active) {
    factors.push_back(adapter->factors());
    scales.push_back(adapter->scale() * weight);
  }
  return {concatenate(factors, scales), 1.0};
}

/// What one adapter sees of its layer's inputs: in training some are left out, as its dropout says.
inline torch::Tensor adapter_input(const ActiveAdapter& item, const torch::Tensor& x) {
  const bool training = item.adapter->module().is_training();
  return at::dropout(x, item.adapter->options().dropout(), training);
}

/// Linear layer with adapters, for what the low-rank route cannot carry: variants without factors,
/// and dropout of the adapters' inputs.
/// Equation: y = x weight^T + bias + sum of share * adapter_input(x) delta^T
/// Shapes:   x (..., in), weight (out, in), bias (out), y (..., out)
/// Dtypes:   x, weight and bias of one floating dtype, or under autocast
inline torch::Tensor linear_by_parts(const torch::Tensor& x, const torch::Tensor& weight,
                                     const std::optional<torch::Tensor>& bias,
                                     const std::vector<ActiveAdapter>& active, bool dropping) {
  // One product with the sum, unless rounding the sum would swallow the delta.
  if (!dropping && !detail::autocast_dtype(x) && !at::isReducedFloatingType(x.scalar_type())) {
    return at::linear(x, weight + total_delta(active, weight), bias);
  }
  torch::Tensor y = at::linear(x, weight, bias);
  for (const auto& item : active) {
    const torch::Tensor seen = dropping ? adapter_input(item, x) : x;
    const auto cast = [&](const torch::Tensor& t) { return t.to(x.scalar_type()); };
    if (item.adapter->has_factors()) {
      const Factors f = item.adapter->factors();
      y = at::add(y, at::linear(at::linear(seen, cast(f.down)), cast(f.up)),
                  item.adapter->scale() * item.weight);
    } else {
      y = at::add(y, at::linear(seen, cast(item.adapter->delta(weight))), item.weight);
    }
  }
  return y;
}

/// Mixin of layers that know about adapters: whatever is in the slot joins their forward pass.
/// `Patched` fills and empties it; a layer with an empty slot is exactly the torch layer.
class AdapterSlot {
 public:
  const std::vector<ActiveAdapter>& active_adapters() const { return active_; }
  void set_active_adapters(std::vector<ActiveAdapter> active) { active_ = std::move(active); }

 protected:
  ~AdapterSlot() = default;

 private:
  std::vector<ActiveAdapter> active_;
};

/// The weight of one layer of a model: where it is, and how it reads as a matrix (out, in).
/// A layer type that can be adapted is one line in `find_weight`.
class LayerWeight {
 public:
  LayerWeight(std::shared_ptr<torch::nn::Module> layer, torch::Tensor& weight, bool transposed)
      : layer_(std::move(layer)), weight_(&weight), transposed_(transposed) {}

  const std::shared_ptr<torch::nn::Module>& layer() const { return layer_; }
  /// The layer's own member; assigning another tensor to it is how a plain layer is adapted.
  torch::Tensor& tensor() const { return *weight_; }
  /// The layer's slot, or null for a layer that does not know about adapters.
  AdapterSlot* slot() const { return dynamic_cast<AdapterSlot*>(layer_.get()); }

  /// Name and matrix shape of the layer.
  LayerInfo info(std::string name) const {
    const int64_t rows = weight_->size(0);
    const int64_t columns = rows > 0 ? weight_->numel() / rows : 0;
    if (transposed_) return {std::move(name), rows, columns};
    return {std::move(name), columns, rows, weight_->sizes().slice(2).vec()};
  }

  /// The weight as a matrix (out, in).
  torch::Tensor matrix() const { return transposed_ ? weight_->t() : weight_->flatten(1); }
  /// A matrix (out, in) in the shape of the weight.
  torch::Tensor shaped(const torch::Tensor& matrix) const {
    return (transposed_ ? matrix.t() : matrix).reshape(weight_->sizes());
  }

  /// weight + delta, summed in the wider of the two dtypes and rounded once to the weight's.
  torch::Tensor plus(const torch::Tensor& delta) const {
    return (*weight_ + shaped(delta)).to(weight_->scalar_type());
  }

 private:
  std::shared_ptr<torch::nn::Module> layer_;
  torch::Tensor* weight_;
  bool transposed_;
};

namespace detail {

template <typename Impl>
std::optional<LayerWeight> weight_if(const std::shared_ptr<torch::nn::Module>& module,
                                     bool transposed = false) {
  if (auto layer = std::dynamic_pointer_cast<Impl>(module)) {
    return LayerWeight(module, layer->weight, transposed);
  }
  return std::nullopt;
}

}  // namespace detail

/// The adaptable weight of a module, or nothing if its type cannot be adapted.
inline std::optional<LayerWeight> find_weight(const std::shared_ptr<torch::nn::Module>& module) {
  using detail::weight_if;
  if (auto found = weight_if<torch::nn::LinearImpl>(module)) return found;
  if (auto found = weight_if<torch::nn::Conv1dImpl>(module)) return found;
  if (auto found = weight_if<torch::nn::Conv2dImpl>(module)) return found;
  if (auto found = weight_if<torch::nn::Conv3dImpl>(module)) return found;
  return weight_if<torch::nn::EmbeddingImpl>(module, /*transposed=*/true);
}

/// The names of the types that `find_weight` knows, for messages.
inline const char* adaptable_types() { return "Linear, Conv1d, Conv2d, Conv3d, Embedding"; }

/// Moves an adapter to its layer's device, in fp32 (fp64 over an fp64 weight).
inline void place(Adapter& adapter, const LayerWeight& layer) {
  const bool wide = layer.tensor().scalar_type() == torch::kDouble;
  adapter.module().to(layer.tensor().device(), wide ? torch::kDouble : torch::kFloat);
}

/// Errors: c10::ValueError if the adapter has a dropout. For layers whose adapter is a part of the
///         weight: no input can be left out for the adapter alone
inline void require_no_dropout(const Adapter& adapter) {
  TORCH_CHECK_VALUE(adapter.options().dropout() == 0, "lightlora: '", adapter.layer().name,
                    "': expected dropout 0 for a plain layer, whose adapter is a part of the weight, ",
                    "got ", adapter.options().dropout(),
                    "; hint: build the model with lightlora::Linear or lightlora::Conv2d");
}

/// Moves a new adapter to its layer and lets it take what it needs from the layer's weight.
inline void fit(Adapter& adapter, const LayerWeight& layer) {
  place(adapter, layer);
  adapter.prepare(layer.matrix().detach());
}

/// While it lives, a plain layer computes with weight + delta; its registered parameter stays the
/// base, so saving and cloning see the base and the base gets no gradient.
class WeightBinding {
 public:
  /// Errors: c10::Error when a half-precision weight would be trained through: such a weight
  /// swallows most of a small delta (bf16 loses 79 % of one at 1/1000 of the weight).
  WeightBinding(const LayerWeight& weight, const torch::Tensor& delta, const std::string& name)
      : weight_(weight), base_(weight.tensor()) {
    TORCH_CHECK(!delta.requires_grad() || !at::isReducedFloatingType(base_.scalar_type()),
                "lightlora: '", name, "': expected an fp32 weight for training through a plain ",
                "layer, got ", base_.scalar_type(),
                "; hint: build the model with lightlora::Linear, or keep this layer in fp32");
    weight_.tensor() = weight_.plus(delta);
  }
  ~WeightBinding() { weight_.tensor() = base_; }
  WeightBinding(const WeightBinding&) = delete;
  WeightBinding& operator=(const WeightBinding&) = delete;

 private:
  LayerWeight weight_;
  torch::Tensor base_;
};

}  // namespace lightlora
