// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>
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

/// Whether an adapter leaves something out in training: inputs, ranks, or all of itself.
bool has_dropout(const Adapter& adapter);

/// Whether some of these adapters leave something out now.
bool any_dropout(const std::vector<ActiveAdapter>& active);

/// Whether `total_factors` can be had: each of these adapters has factors.
bool all_have_factors(const std::vector<ActiveAdapter>& active);

/// Factors and scale of the sum of several adapters of one layer, all of which have factors.
std::pair<Factors, double> total_factors(const std::vector<ActiveAdapter>& active);

/// What one adapter sees of its layer's inputs: in training some are left out, as its dropout says.
torch::Tensor adapter_input(const ActiveAdapter& item, const torch::Tensor& x);

/// The factors of one adapter in one call; if it drops, without some of its ranks, or all zero.
/// What is left out is drawn where the factors are, so that a recorded CUDA graph draws anew.
Factors factors_of_call(const ActiveAdapter& item, bool dropping);

/// The delta of one adapter in one call; if it drops, perhaps zero.
torch::Tensor delta_of_call(const ActiveAdapter& item, const torch::Tensor& weight, bool dropping);

/// What a layer does with its weight, and so how an adapter joins in.
/// `linear`: x W^T. `convolution`: with kernels (out, in / groups, ...). `transposed_convolution`:
/// with kernels (in, out / groups, ...). `lookup`: rows by number. `bag`: sums of such rows.
/// `bilinear`: x1 W x2 with W (out, in1, in2). `recurrent`: one of the matrices of an RNN, LSTM or
/// GRU. `vector`: no matrix but a norm's weight or bias, or a layer's bias.
enum class LayerKind {
  linear,
  convolution,
  transposed_convolution,
  lookup,
  bag,
  bilinear,
  recurrent,
  vector
};

/// The weight of one layer of a model: where it is, and how it reads as a matrix (out, in).
/// A layer type that can be adapted is one line in `find_weights`.
class LayerWeight {
 public:
  /// A weight that is a member of its layer. `type` is the layer's type for people and targets,
  /// `part` the weight's name in a layer that has several.
  LayerWeight(std::shared_ptr<torch::nn::Module> layer, torch::Tensor& weight, std::string type,
              LayerKind kind, std::string part = "");
  /// A weight that no member holds, such as those of recurrent and TorchScript modules; `layer` may
  /// be null.
  LayerWeight(std::shared_ptr<torch::nn::Module> layer, const torch::Tensor& weight, bool owned,
              std::string type, LayerKind kind, std::string part = "");

  /// The layer, or null for one of TorchScript.
  const std::shared_ptr<torch::nn::Module>& layer() const { return layer_; }
  /// "Linear", "Conv2d", ...
  const std::string& type() const { return type_; }
  /// What the layer does with it.
  LayerKind kind() const { return kind_; }
  /// Which of a layer's weights this is, such as "in_proj"; empty for layers with one weight.
  const std::string& part() const { return part_; }
  /// Says that the layer is the output projection of a MultiheadAttention.
  void set_attention_output() { attention_output_ = true; }
  /// The layer's own member, or a handle of the same tensor.
  torch::Tensor& tensor() const { return *weight_; }
  /// Whether `tensor()` is the layer's member, so that assigning to it changes what the layer uses.
  bool is_member() const { return is_member_; }
  /// Whether the layer is in training mode; one of TorchScript counts as evaluating.
  bool is_training() const { return layer_ && layer_->is_training(); }
  /// The row of an embedding that stays as it is, or -1.
  int64_t padding_idx() const { return padding_idx_; }

  /// Name and matrix shape of the layer.
  LayerInfo info(std::string name) const;

  /// The weight as a matrix (out, in).
  torch::Tensor matrix() const { return as_matrix(*weight_); }
  /// A tensor of the weight's shape as a matrix (out, in).
  torch::Tensor as_matrix(const torch::Tensor& weight) const;
  /// A matrix (out, in), a delta, in the shape of the weight; zero in an embedding's padding row.
  torch::Tensor shaped(const torch::Tensor& matrix) const;

  /// weight + delta, summed in the wider of the two dtypes and rounded once to the weight's.
  torch::Tensor plus(const torch::Tensor& delta) const;

 private:
  // Whether the matrix is the weight's transpose: where the weight has inputs first.
  bool transposed() const;

  std::shared_ptr<torch::nn::Module> layer_;
  std::shared_ptr<torch::Tensor> weight_;
  std::string type_;
  LayerKind kind_;
  std::string part_;
  bool is_member_;
  bool attention_output_ = false;
  int64_t padding_idx_ = -1;
};

/// The adaptable weights of a module: one for most layers, the input projections of a
/// MultiheadAttention, the matrices of a recurrent layer, none for a module that cannot be adapted.
std::vector<LayerWeight> find_weights(const std::shared_ptr<torch::nn::Module>& module);

/// The vectors of a module, with their names as parts: weight and bias of a LayerNorm over one
/// dimension or a GroupNorm, the bias of a linear layer or a convolution.
std::vector<LayerWeight> find_vectors(const std::shared_ptr<torch::nn::Module>& module);

/// The names of the types that `find_weights` knows, for messages.
const char* adaptable_types();

/// Why a layer with weights, of which `find_weights` finds none, cannot be adapted; an empty text
/// for any other module.
std::string refusal_reason(const torch::nn::Module& module);

/// Whether writing to one weight changes another: they are one tensor, aliases as `set_data` makes
/// them, or views of one storage that overlap.
bool share_memory(const at::Tensor& a, const at::Tensor& b);

/// Whether calls of two kinds of layers look for a weight in the same place: a product finds the
/// weights of linear layers and of convolutions.
bool looked_up_alike(LayerKind a, LayerKind b);

/// What of a model can be adapted: each weight once, with its path; and every layer that targets
/// may name, those that are refused too.
struct AdaptableLayers {
  std::vector<std::pair<std::string, LayerWeight>> weights;  ///< by path, in the model's order
  std::vector<TargetLayer> targets;  ///< the same paths, and the refused ones
};

/// Collects what can be adapted below a model, and the model itself if a shared pointer owns it.
AdaptableLayers adaptable_layers(torch::nn::Module& model);

/// Moves an adapter to its layer's device, in fp32 (fp64 over an fp64 weight).
void place(Adapter& adapter, const LayerWeight& layer);

/// For adapters that are a part of the weight: nothing can be left out for them alone.
/// Errors: c10::ValueError if the adapter has a dropout
void require_no_dropout(const Adapter& adapter);

/// Moves a new adapter to its layer and lets it take what it needs from the layer's weight.
/// Errors: c10::ValueError for a rank_dropout of a variant that has no ranks to leave out
void fit(Adapter& adapter, const LayerWeight& layer);

/// While it lives, a layer's weight member is weight + delta; its registered parameter stays the
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
