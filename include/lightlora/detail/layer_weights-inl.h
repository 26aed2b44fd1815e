// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/layer_weights.h>

#include <ATen/ATen.h>
#include <lightlora/detail/low_rank_linear-inl.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <unordered_set>

namespace lightlora {

LIGHTLORA_INLINE torch::Tensor total_delta(const std::vector<ActiveAdapter>& active,
                                           const torch::Tensor& weight) {
  torch::Tensor sum;
  for (const auto& [adapter, share] : active) {
    const torch::Tensor delta = adapter->delta(weight);
    const torch::Tensor shared = share == 1.0 ? delta : delta * share;
    sum = sum.defined() ? sum + shared : shared;
  }
  return sum;
}

LIGHTLORA_INLINE bool any_dropout(const std::vector<ActiveAdapter>& active) {
  return std::any_of(active.begin(), active.end(), [](const ActiveAdapter& item) {
    return item.adapter->options().dropout() > 0 && item.adapter->module().is_training();
  });
}

LIGHTLORA_INLINE bool all_have_factors(const std::vector<ActiveAdapter>& active) {
  return std::all_of(active.begin(), active.end(),
                     [](const ActiveAdapter& item) { return item.adapter->has_factors(); });
}

LIGHTLORA_INLINE std::pair<Factors, double> total_factors(
    const std::vector<ActiveAdapter>& active) {
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

LIGHTLORA_INLINE torch::Tensor adapter_input(const ActiveAdapter& item, const torch::Tensor& x) {
  const bool training = item.adapter->module().is_training();
  return at::dropout(x, item.adapter->options().dropout(), training);
}

LIGHTLORA_INLINE torch::Tensor linear_by_parts(const torch::Tensor& x, const torch::Tensor& weight,
                                               const std::optional<torch::Tensor>& bias,
                                               const std::vector<ActiveAdapter>& active,
                                               bool dropping) {
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

LIGHTLORA_INLINE void AdapterSlot::set_packed(bool on) {
  if (on != is_packed()) packed_ = on ? std::make_shared<PackedWeight>() : nullptr;
}

LIGHTLORA_INLINE const PackedWeight* AdapterSlot::packed_for(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) const {
  const bool usable =
      packed_ && !detail::autocast_dtype(x) && PackedWeight::usable(x, weight, bias);
  return usable ? packed_.get() : nullptr;
}

LIGHTLORA_INLINE bool AdapterSlot::takes_merged_once(const torch::nn::Module& self,
                                                     const at::Tensor& weight,
                                                     const at::Tensor& x) const {
  if (self.is_training() || at::GradMode::is_enabled() || route_ == Route::bypass) return false;
  if (route_ == Route::merged) return true;
  return !at::isReducedFloatingType(weight.scalar_type()) && !detail::autocast_dtype(x);
}

LIGHTLORA_INLINE std::pair<Factors, double> AdapterSlot::composed_factors() const {
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

LIGHTLORA_INLINE std::pair<std::vector<at::Tensor>, std::vector<double>> AdapterSlot::made_from()
    const {
  std::pair<std::vector<at::Tensor>, std::vector<double>> result;
  for (const auto& [adapter, weight] : active_) {
    for (const auto& item : adapter->trained()) result.first.push_back(item.value());
    for (const auto& item : adapter->frozen()) result.first.push_back(item.value());
    result.second.insert(result.second.end(), {adapter->scale(), weight});
  }
  return result;
}

LIGHTLORA_INLINE int64_t pack_weights(torch::nn::Module& model, bool on) {
  int64_t layers = 0;
  for (const auto& module : model.modules()) {
    if (auto* slot = dynamic_cast<AdapterSlot*>(module.get())) {
      slot->set_packed(on);
      ++layers;
    }
  }
  return layers;
}

LIGHTLORA_INLINE LayerWeight::LayerWeight(std::shared_ptr<torch::nn::Module> layer,
                                          torch::Tensor& weight, const char* type, bool transposed,
                                          std::string part)
    : layer_(std::move(layer)),
      weight_(&weight),
      type_(type),
      part_(std::move(part)),
      transposed_(transposed) {}

LIGHTLORA_INLINE LayerInfo LayerWeight::info(std::string name) const {
  const int64_t rows = weight_->size(0);
  const int64_t columns = rows > 0 ? weight_->numel() / rows : 0;
  if (transposed_) return {std::move(name), rows, columns};
  return {std::move(name), columns, rows, weight_->sizes().slice(2).vec()};
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::as_matrix(const torch::Tensor& weight) const {
  return transposed_ ? weight.t() : weight.flatten(1);
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::shaped(const torch::Tensor& matrix) const {
  return (transposed_ ? matrix.t() : matrix).reshape(weight_->sizes());
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::plus(const torch::Tensor& delta) const {
  return (*weight_ + shaped(delta)).to(weight_->scalar_type());
}

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

LIGHTLORA_INLINE std::vector<LayerWeight> find_weights(
    const std::shared_ptr<torch::nn::Module>& module) {
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

LIGHTLORA_INLINE const char* adaptable_types() {
  return "Linear, Conv1d, Conv2d, Conv3d, Embedding, MultiheadAttention";
}

LIGHTLORA_INLINE std::string refusal_reason(const torch::nn::Module& module) {
  static const std::pair<const char*, const char*> reasons[] = {
      {"Bilinear", "its weight has three dimensions and is no matrix to add low-rank factors to"},
      {"RNN", "a recurrent layer passes its weights on as a list of their own"},
      {"LSTM", "a recurrent layer passes its weights on as a list of their own"},
      {"GRU", "a recurrent layer passes its weights on as a list of their own"},
      {"ConvTranspose",
       "the weight of a transposed convolution has inputs and outputs exchanged "
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

LIGHTLORA_INLINE AdaptableLayers adaptable_layers(torch::nn::Module& model) {
  AdaptableLayers found;
  std::unordered_set<const torch::nn::Module*> seen;
  const auto visit = [&](const std::string& path,
                         const std::shared_ptr<torch::nn::Module>& module) {
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

LIGHTLORA_INLINE void place(Adapter& adapter, const LayerWeight& layer) {
  const bool wide = layer.tensor().scalar_type() == torch::kDouble;
  adapter.module().to(layer.tensor().device(), wide ? torch::kDouble : torch::kFloat);
}

LIGHTLORA_INLINE void require_no_dropout(const Adapter& adapter) {
  TORCH_CHECK_VALUE(
      adapter.options().dropout() == 0, "lightlora: '", adapter.layer().name,
      "': expected dropout 0 for a plain layer, whose adapter is a part of the weight, ", "got ",
      adapter.options().dropout(),
      "; hint: build the model with lightlora::Linear or lightlora::Conv2d");
}

LIGHTLORA_INLINE void fit(Adapter& adapter, const LayerWeight& layer) {
  place(adapter, layer);
  adapter.prepare(layer.matrix().detach());
}

LIGHTLORA_INLINE WeightBinding::WeightBinding(const LayerWeight& weight, const torch::Tensor& delta,
                                              const std::string& name)
    : weight_(weight), base_(weight.tensor()) {
  TORCH_CHECK(!delta.requires_grad() || !at::isReducedFloatingType(base_.scalar_type()),
              "lightlora: '", name, "': expected an fp32 weight for training through a plain ",
              "layer, got ", base_.scalar_type(),
              "; hint: build the model with lightlora::Linear, or keep this layer in fp32");
  weight_.tensor() = weight_.plus(delta);
}

LIGHTLORA_INLINE bool WeightBinding::stale() const {
  return base_.device() != weight_.tensor().device() ||
         base_.scalar_type() != weight_.tensor().scalar_type();
}

}  // namespace lightlora
