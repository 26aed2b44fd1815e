// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/detail/inference_cache.h>
#include <lightlora/detail/packed_weight.h>
#include <lightlora/targets.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
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
torch::Tensor total_delta(const std::vector<ActiveAdapter>& active, const torch::Tensor& weight);

/// Whether some of these adapters leave out inputs in training.
bool any_dropout(const std::vector<ActiveAdapter>& active);

/// Whether `total_factors` can be had: each of these adapters has factors.
bool all_have_factors(const std::vector<ActiveAdapter>& active);

/// Factors and scale of the sum of several adapters of one layer, all of which have factors.
std::pair<Factors, double> total_factors(const std::vector<ActiveAdapter>& active);

/// What one adapter sees of its layer's inputs: in training some are left out, as its dropout says.
torch::Tensor adapter_input(const ActiveAdapter& item, const torch::Tensor& x);

/// Linear layer with adapters, for what the low-rank route cannot carry: variants without factors,
/// and dropout of the adapters' inputs.
/// Equation: y = x weight^T + bias + sum of share * adapter_input(x) delta^T
/// Shapes:   x (..., in), weight (out, in), bias (out), y (..., out)
/// Dtypes:   x, weight and bias of one floating dtype, or under autocast
torch::Tensor linear_by_parts(const torch::Tensor& x, const torch::Tensor& weight,
                              const std::optional<torch::Tensor>& bias,
                              const std::vector<ActiveAdapter>& active, bool dropping);

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
  void set_packed(bool on);
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
                                 const std::optional<at::Tensor>& bias) const;

  /// Whether to compute with `merged_once`.
  bool takes_merged_once(const torch::nn::Module& self, const at::Tensor& weight,
                         const at::Tensor& x) const;

  /// `make()`, which merges the active adapters into `weight`, or its last result if that still
  /// holds.
  template <typename Make>
  at::Tensor merged_once(const at::Tensor& weight, const Make& make) const {
    auto [sources, numbers] = made_from();
    sources.push_back(weight);
    return cache_->get(sources, numbers, [&] { return std::vector<at::Tensor>{make()}; })[0];
  }

  /// `total_factors` of the active adapters; without gradients composed once and kept.
  std::pair<Factors, double> composed_factors() const;

 private:
  // All that the composed factors depend on.
  std::pair<std::vector<at::Tensor>, std::vector<double>> made_from() const;

  std::vector<ActiveAdapter> active_;
  Route route_ = Route::automatic;
  // Shared by copies of a layer, which only costs them hits.
  std::shared_ptr<InferenceCache> cache_ = std::make_shared<InferenceCache>();
  std::shared_ptr<PackedWeight> packed_;  // shared as the cache is
};

/// Switches packed weights on or off in every drop-in layer of a model (see AdapterSlot::set_packed),
/// adapted or not, and returns how many there are.
int64_t pack_weights(torch::nn::Module& model, bool on = true);

/// The weight of one layer of a model: where it is, and how it reads as a matrix (out, in).
/// A layer type that can be adapted is one line in `find_weights`.
class LayerWeight {
 public:
  /// `type` is the layer's type for people and targets, `part` the weight's name in a layer that has
  /// several; a transposed weight is stored as (in, out).
  LayerWeight(std::shared_ptr<torch::nn::Module> layer, torch::Tensor& weight, const char* type,
              bool transposed = false, std::string part = "");

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
  LayerInfo info(std::string name) const;

  /// The weight as a matrix (out, in).
  torch::Tensor matrix() const { return as_matrix(*weight_); }
  /// A tensor of the weight's shape as a matrix (out, in).
  torch::Tensor as_matrix(const torch::Tensor& weight) const;
  /// A matrix (out, in) in the shape of the weight.
  torch::Tensor shaped(const torch::Tensor& matrix) const;

  /// weight + delta, summed in the wider of the two dtypes and rounded once to the weight's.
  torch::Tensor plus(const torch::Tensor& delta) const;

 private:
  std::shared_ptr<torch::nn::Module> layer_;
  torch::Tensor* weight_;
  std::string type_;
  std::string part_;
  bool transposed_;
};

/// The adaptable weights of a module: one for most layers, the input projections of a
/// MultiheadAttention, none for a module that cannot be adapted.
std::vector<LayerWeight> find_weights(const std::shared_ptr<torch::nn::Module>& module);

/// The names of the types that `find_weights` knows, for messages.
const char* adaptable_types();

/// Why a layer with weights, of which `find_weights` finds none, cannot be adapted; an empty text
/// for any other module.
std::string refusal_reason(const torch::nn::Module& module);

/// What of a model can be adapted: each weight once, with its path; and every layer that targets
/// may name, those that are refused too.
struct AdaptableLayers {
  std::vector<std::pair<std::string, LayerWeight>> weights;  ///< by path, in the model's order
  std::vector<TargetLayer> targets;                          ///< the same paths, and the refused ones
};

/// Collects what can be adapted below a model, and the model itself if a shared pointer owns it.
AdaptableLayers adaptable_layers(torch::nn::Module& model);

/// Moves an adapter to its layer's device, in fp32 (fp64 over an fp64 weight).
void place(Adapter& adapter, const LayerWeight& layer);

/// Errors: c10::ValueError if the adapter has a dropout. For layers whose adapter is a part of the
///         weight: no input can be left out for the adapter alone
void require_no_dropout(const Adapter& adapter);

/// Moves a new adapter to its layer and lets it take what it needs from the layer's weight.
void fit(Adapter& adapter, const LayerWeight& layer);

/// While it lives, a plain layer computes with weight + delta; its registered parameter stays the
/// base, so saving and cloning see the base and the base gets no gradient.
class WeightBinding {
 public:
  /// Errors: c10::Error when a half-precision weight would be trained through: such a weight
  /// swallows most of a small delta (bf16 loses 79 % of one at 1/1000 of the weight).
  WeightBinding(const LayerWeight& weight, const torch::Tensor& delta, const std::string& name);
  /// Whether the layer has been moved or cast since: its registered weight then is, the bound one
  /// is not.
  bool stale() const;
  ~WeightBinding() { weight_.tensor() = base_; }
  WeightBinding(const WeightBinding&) = delete;
  WeightBinding& operator=(const WeightBinding&) = delete;

 private:
  LayerWeight weight_;
  torch::Tensor base_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/layer_weights-inl.h>
#endif
