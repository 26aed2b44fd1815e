// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/inference_cache.h>
#include <lightlora/low_rank_linear.h>
#include <lightlora/packed_weight.h>
#include <lightlora/route.h>
#include <lightlora/targets.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace lightlora {

/// An adapter that takes part in a forward pass, with its weight in the sum.
struct ActiveAdapter {
  std::shared_ptr<const Adapter> adapter;  ///< never null
  double weight = 1.0;                     ///< factor of its delta
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
  /// What joins the forward pass now.
  const std::vector<ActiveAdapter>& active_adapters() const { return active_; }
  /// Replaces it.
  void set_active_adapters(std::vector<ActiveAdapter> active) { active_ = std::move(active); }

  /// How the layer computes with its adapters. In evaluation mode without gradients, `automatic` and
  /// `merged` take a weight that is merged once and kept until a value changes (`automatic` not in
  /// half precision or under autocast, which would round small deltas away).
  Route route() const { return route_; }
  /// Forces one, or lets the shape decide with `automatic`.
  void set_route(Route route) { route_ = route; }

  /// Keeps the frozen weight a second time in the CPU kernels' own layout (see PackedWeight), for
  /// faster forward and backward passes; of no effect on other devices and while the weight trains.
  void set_packed(bool on) {
    if (on != is_packed()) packed_ = on ? std::make_shared<PackedWeight>() : nullptr;
  }
  /// Whether it does.
  bool is_packed() const { return packed_ != nullptr; }

  /// Gives back the memory of what evaluation has kept.
  void clear_cache() { cache_->clear(); }

 protected:
  ~AdapterSlot() = default;

  /// What holds the packed weight, or null.
  const PackedWeight* packed() const { return packed_.get(); }
  /// The same if a product with `x` can use it.
  const PackedWeight* packed_for(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias) const {
    const bool usable =
        packed_ && !detail::autocast_dtype(x) && PackedWeight::usable(x, weight, bias);
    return usable ? packed_.get() : nullptr;
  }

  /// Whether to compute with `merged_once`.
  bool takes_merged_once(const torch::nn::Module& self, const at::Tensor& weight,
                         const at::Tensor& x) const {
    if (self.is_training() || at::GradMode::is_enabled() || route_ == Route::bypass) return false;
    if (route_ == Route::merged) return true;
    return !at::isReducedFloatingType(weight.scalar_type()) && !detail::autocast_dtype(x);
  }

  /// `make()`, which merges the active adapters into `weight`, or its last result if that still holds.
  template <typename Make>
  at::Tensor merged_once(const at::Tensor& weight, const Make& make) const {
    auto [sources, numbers] = made_from();
    sources.push_back(weight);
    return cache_->get(sources, numbers, [&] { return std::vector<at::Tensor>{make()}; })[0];
  }

  /// `total_factors` of the active adapters; without gradients composed once and kept.
  std::pair<Factors, double> composed_factors() const {
    if (at::GradMode::is_enabled()) {
      cache_->clear();
      return total_factors(active_);
    }
    const auto [sources, numbers] = made_from();
    double scale = active_.size() == 1 ? numbers[0] * numbers[1] : 1.0;
    const auto made = cache_->get(sources, numbers, [&] {
      const Factors factors = total_factors(active_).first;
      return std::vector<at::Tensor>{factors.down, factors.up};
    });
    return {{made[0], made[1]}, scale};
  }

 private:
  // All that the composed factors depend on.
  std::pair<std::vector<at::Tensor>, std::vector<double>> made_from() const {
    std::pair<std::vector<at::Tensor>, std::vector<double>> result;
    for (const auto& [adapter, weight] : active_) {
      for (const auto& item : adapter->trained()) result.first.push_back(item.value());
      for (const auto& item : adapter->frozen()) result.first.push_back(item.value());
      result.second.insert(result.second.end(), {adapter->scale(), weight});
    }
    return result;
  }

  std::vector<ActiveAdapter> active_;
  Route route_ = Route::automatic;
  // Shared by copies of a layer, which only costs them hits.
  std::shared_ptr<InferenceCache> cache_ = std::make_shared<InferenceCache>();
  std::shared_ptr<PackedWeight> packed_;  // shared as the cache is
};

/// Switches packed weights on or off in every drop-in layer of a model (see AdapterSlot::set_packed),
/// adapted or not, and returns how many there are.
inline int64_t pack_weights(torch::nn::Module& model, bool on = true) {
  int64_t layers = 0;
  for (const auto& module : model.modules()) {
    if (auto* slot = dynamic_cast<AdapterSlot*>(module.get())) {
      slot->set_packed(on);
      ++layers;
    }
  }
  return layers;
}

/// The weight of one layer of a model: where it is, and how it reads as a matrix (out, in).
/// A layer type that can be adapted is one line in `find_weights`.
class LayerWeight {
 public:
  /// `type` is the layer's type for people and targets, `part` the weight's name in a layer that has
  /// several; a transposed weight is stored as (in, out).
  LayerWeight(std::shared_ptr<torch::nn::Module> layer, torch::Tensor& weight, const char* type,
              bool transposed = false, std::string part = "")
      : layer_(std::move(layer)),
        weight_(&weight),
        type_(type),
        part_(std::move(part)),
        transposed_(transposed) {}

  /// The layer.
  const std::shared_ptr<torch::nn::Module>& layer() const { return layer_; }
  /// "Linear", "Conv2d", ...
  const std::string& type() const { return type_; }
  /// Which of a layer's weights this is, such as "in_proj"; empty for layers with one weight.
  const std::string& part() const { return part_; }
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
  torch::Tensor matrix() const { return as_matrix(*weight_); }
  /// A tensor of the weight's shape as a matrix (out, in).
  torch::Tensor as_matrix(const torch::Tensor& weight) const {
    return transposed_ ? weight.t() : weight.flatten(1);
  }
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
  std::string type_;
  std::string part_;
  bool transposed_;
};

namespace detail {

using LayerWeights = std::vector<LayerWeight>;

template <typename Impl>
bool add_weight(LayerWeights& found, const std::shared_ptr<torch::nn::Module>& module,
                const char* type, bool transposed = false) {
  auto* layer = dynamic_cast<Impl*>(module.get());
  if (layer && layer->weight.defined()) {
    found.emplace_back(module, layer->weight, type, transposed);
  }
  return layer != nullptr;
}

// Its output projection is a Linear of its own among the model's modules.
inline bool add_attention(LayerWeights& found, const std::shared_ptr<torch::nn::Module>& module) {
  auto* layer = dynamic_cast<torch::nn::MultiheadAttentionImpl*>(module.get());
  if (!layer) return false;
  const auto add = [&](torch::Tensor& weight, const char* part) {
    if (weight.defined()) {
      found.emplace_back(module, weight, "MultiheadAttention", /*transposed=*/false, part);
    }
  };
  add(layer->in_proj_weight, "in_proj");
  add(layer->q_proj_weight, "q_proj");  // with kdim or vdim in place of in_proj
  add(layer->k_proj_weight, "k_proj");
  add(layer->v_proj_weight, "v_proj");
  return true;
}

}  // namespace detail

/// The adaptable weights of a module: one for most layers, the input projections of a
/// MultiheadAttention, none for a module that cannot be adapted.
inline std::vector<LayerWeight> find_weights(const std::shared_ptr<torch::nn::Module>& module) {
  using detail::add_weight;
  std::vector<LayerWeight> found;
  add_weight<torch::nn::LinearImpl>(found, module, "Linear") ||
      add_weight<torch::nn::Conv1dImpl>(found, module, "Conv1d") ||
      add_weight<torch::nn::Conv2dImpl>(found, module, "Conv2d") ||
      add_weight<torch::nn::Conv3dImpl>(found, module, "Conv3d") ||
      add_weight<torch::nn::EmbeddingImpl>(found, module, "Embedding", /*transposed=*/true) ||
      detail::add_attention(found, module);
  return found;
}

/// The names of the types that `find_weights` knows, for messages.
inline const char* adaptable_types() {
  return "Linear, Conv1d, Conv2d, Conv3d, Embedding, MultiheadAttention";
}

/// Why a layer with weights, of which `find_weights` finds none, cannot be adapted; an empty text for
/// any other module.
inline std::string refusal_reason(const torch::nn::Module& module) {
  static const std::pair<const char*, const char*> reasons[] = {
      {"Bilinear", "its weight has three dimensions and is no matrix to add low-rank factors to"},
      {"RNN", "a recurrent layer passes its weights on as a list of their own"},
      {"LSTM", "a recurrent layer passes its weights on as a list of their own"},
      {"GRU", "a recurrent layer passes its weights on as a list of their own"},
      {"ConvTranspose", "the weight of a transposed convolution has inputs and outputs exchanged "
                        "within its groups"},
      {"EmbeddingBag", "its rows are summed in one kernel with the stored weight"}};
  const std::string& name = module.name();
  for (const auto& [type, reason] : reasons) {
    if (name.find(std::string("torch::nn::") + type) == 0) return reason;
  }
  // Such as a LayerNorm. A module that holds layers as well is better answered with their names.
  const bool plain = module.children().empty() && !module.parameters(/*recurse=*/false).empty();
  if (plain) return std::string("none of ") + adaptable_types();
  return "";
}

/// What of a model can be adapted: each weight once, with its path; and every layer that targets may
/// name, those that are refused too.
struct AdaptableLayers {
  std::vector<std::pair<std::string, LayerWeight>> weights;  ///< by path, in the model's order
  std::vector<TargetLayer> targets;                          ///< the same paths, and the refused ones
};

/// Collects what can be adapted below a model, and the model itself if a shared pointer owns it.
inline AdaptableLayers adaptable_layers(torch::nn::Module& model) {
  AdaptableLayers found;
  std::unordered_set<const torch::nn::Module*> seen;
  const auto visit = [&](const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    if (!seen.insert(module.get()).second) return;
    auto weights = find_weights(module);
    for (auto& weight : weights) {
      const char* dot = path.empty() || weight.part().empty() ? "" : ".";
      const std::string full = path + dot + weight.part();
      found.targets.push_back({full, weight.type(), ""});
      found.weights.emplace_back(full, std::move(weight));
    }
    if (!weights.empty()) return;
    if (const auto reason = refusal_reason(*module); !reason.empty()) {
      found.targets.push_back({path, module->name(), reason});
    }
  };
  if (const auto root = model.weak_from_this().lock()) visit("", root);
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    visit(item.key(), item.value());
  }
  return found;
}

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
  /// Whether the layer has been moved or cast since: its registered weight then is, the bound one
  /// is not.
  bool stale() const {
    return base_.device() != weight_.tensor().device() ||
           base_.scalar_type() != weight_.tensor().scalar_type();
  }
  ~WeightBinding() { weight_.tensor() = base_; }
  WeightBinding(const WeightBinding&) = delete;
  WeightBinding& operator=(const WeightBinding&) = delete;

 private:
  LayerWeight weight_;
  torch::Tensor base_;
};

}  // namespace lightlora
