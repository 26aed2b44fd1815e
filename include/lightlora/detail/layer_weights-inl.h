// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/layer_weights.h>

#include <lightlora/detail/layer_call.h>
#include <lightlora/detail/layer_vectors-inl.h>

#include <ATen/ATen.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>

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

LIGHTLORA_INLINE bool has_dropout(const Adapter& adapter) {
  const LoRAOptions& options = adapter.options();
  return options.dropout() > 0 || options.rank_dropout() > 0 || options.module_dropout() > 0;
}

LIGHTLORA_INLINE bool any_dropout(const std::vector<ActiveAdapter>& active) {
  return std::any_of(active.begin(), active.end(), [](const ActiveAdapter& item) {
    return has_dropout(*item.adapter) && item.adapter->module().is_training();
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

namespace detail {

// Ones, and zeros with that probability. In fp32, so that a seed means the same in every dtype.
inline at::Tensor kept_ones(int64_t count, double dropout, const at::Tensor& like) {
  const auto options = like.options().dtype(at::kFloat).requires_grad(false);
  return at::rand({count}, options).gt(dropout).to(like.scalar_type());
}

inline at::Tensor module_dropped(const ActiveAdapter& item, const at::Tensor& tensor) {
  const double dropout = item.adapter->options().module_dropout();
  return dropout > 0 ? tensor * kept_ones(1, dropout, tensor) : tensor;
}

inline bool drops_now(const ActiveAdapter& item, bool dropping) {
  return dropping && item.adapter->module().is_training();
}

}  // namespace detail

LIGHTLORA_INLINE Factors factors_of_call(const ActiveAdapter& item, bool dropping) {
  Factors factors = item.adapter->factors();
  if (!detail::drops_now(item, dropping)) return factors;
  factors.up = detail::module_dropped(item, factors.up);
  if (const double dropout = item.adapter->options().rank_dropout(); dropout > 0) {
    const at::Tensor kept = detail::kept_ones(factors.down.size(0), dropout, factors.down);
    factors.down = factors.down * (kept / (1 - dropout)).unsqueeze(1);
  }
  return factors;
}

LIGHTLORA_INLINE torch::Tensor delta_of_call(const ActiveAdapter& item, const torch::Tensor& weight,
                                             bool dropping) {
  const torch::Tensor delta = item.adapter->delta(weight);
  return detail::drops_now(item, dropping) ? detail::module_dropped(item, delta) : delta;
}

LIGHTLORA_INLINE LayerWeight::LayerWeight(std::shared_ptr<torch::nn::Module> layer,
                                          torch::Tensor& weight, std::string type, LayerKind kind,
                                          std::string part)
    : layer_(layer),
      weight_(layer, &weight),
      type_(std::move(type)),
      kind_(kind),
      part_(std::move(part)),
      is_member_(true) {
  const auto* embedding = dynamic_cast<torch::nn::EmbeddingImpl*>(layer_.get());
  if (!embedding || !embedding->options.padding_idx()) return;
  const int64_t row = *embedding->options.padding_idx();
  padding_idx_ = row < 0 ? row + weight.size(0) : row;
}

LIGHTLORA_INLINE LayerWeight::LayerWeight(std::shared_ptr<torch::nn::Module> layer,
                                          const torch::Tensor& weight, bool /*owned*/,
                                          std::string type, LayerKind kind, std::string part)
    : layer_(std::move(layer)),
      weight_(std::make_shared<torch::Tensor>(weight)),
      type_(std::move(type)),
      kind_(kind),
      part_(std::move(part)),
      is_member_(false) {}

LIGHTLORA_INLINE bool LayerWeight::transposed() const {
  return kind_ == LayerKind::transposed_convolution || kind_ == LayerKind::lookup ||
         kind_ == LayerKind::bag;
}

LIGHTLORA_INLINE LayerInfo LayerWeight::info(std::string name) const {
  const int64_t rows = weight_->size(0);
  const int64_t columns = rows > 0 ? weight_->numel() / rows : 0;
  LayerInfo info{std::move(name), columns, rows};
  if (transposed()) std::swap(info.in, info.out);
  if (weight_->dim() > 2) {
    (transposed() ? info.out_kernel : info.kernel) = weight_->sizes().slice(2).vec();
  }
  info.lookup = kind_ == LayerKind::lookup || kind_ == LayerKind::bag;
  info.type = attention_output_ ? "MultiheadAttention" : type_;
  info.part = attention_output_ ? "out_proj" : part_;
  info.padding_row = padding_idx_;
  detail::describe_call(layer_.get(), info);
  return info;
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::as_matrix(const torch::Tensor& weight) const {
  const torch::Tensor rows = weight.dim() == 1 ? weight.unsqueeze(1) : weight.flatten(1);
  return transposed() ? rows.t() : rows;
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::shaped(const torch::Tensor& matrix) const {
  const torch::Tensor shape = (transposed() ? matrix.t() : matrix).reshape(weight_->sizes());
  if (padding_idx_ < 0) return shape;
  const auto row = at::tensor({padding_idx_}, at::TensorOptions(at::kLong)).to(shape.device());
  return shape.index_fill(0, row, 0);
}

LIGHTLORA_INLINE torch::Tensor LayerWeight::plus(const torch::Tensor& delta) const {
  return (*weight_ + shaped(delta)).to(weight_->scalar_type());
}

namespace detail {

using LayerWeights = std::vector<LayerWeight>;

template <typename Impl>
bool add_weight(LayerWeights& found, const std::shared_ptr<torch::nn::Module>& module,
                const char* type, LayerKind kind) {
  auto* layer = dynamic_cast<Impl*>(module.get());
  if (layer && layer->weight.defined()) found.emplace_back(module, layer->weight, type, kind);
  return layer != nullptr;
}

// Its output projection is a Linear of its own among the model's modules.
inline bool add_attention(LayerWeights& found, const std::shared_ptr<torch::nn::Module>& module) {
  auto* layer = dynamic_cast<torch::nn::MultiheadAttentionImpl*>(module.get());
  if (!layer) return false;
  const auto add = [&](torch::Tensor& weight, const char* part) {
    if (weight.defined()) {
      found.emplace_back(module, weight, "MultiheadAttention", LayerKind::linear, part);
    }
  };
  add(layer->in_proj_weight, "in_proj");
  add(layer->q_proj_weight, "q_proj");  // with kdim or vdim in place of in_proj
  add(layer->k_proj_weight, "k_proj");
  add(layer->v_proj_weight, "v_proj");
  return true;
}

// The matrices of a recurrent layer, which it keeps in a list of its own.
template <typename Impl>
bool add_recurrent(LayerWeights& found, const std::shared_ptr<torch::nn::Module>& module,
                   const char* type) {
  if (!dynamic_cast<Impl*>(module.get())) return false;
  for (const auto& item : module->named_parameters(/*recurse=*/false)) {
    if (item.value().dim() != 2) continue;
    found.emplace_back(module, item.value(), /*owned=*/true, type, LayerKind::recurrent,
                       item.key());
  }
  return true;
}

}  // namespace detail

LIGHTLORA_INLINE std::vector<LayerWeight> find_weights(
    const std::shared_ptr<torch::nn::Module>& module) {
  using detail::add_recurrent;
  using detail::add_weight;
  namespace nn = torch::nn;
  constexpr auto conv = LayerKind::convolution, transposed = LayerKind::transposed_convolution;
  std::vector<LayerWeight> found;
  add_weight<nn::LinearImpl>(found, module, "Linear", LayerKind::linear) ||
      add_weight<nn::Conv1dImpl>(found, module, "Conv1d", conv) ||
      add_weight<nn::Conv2dImpl>(found, module, "Conv2d", conv) ||
      add_weight<nn::Conv3dImpl>(found, module, "Conv3d", conv) ||
      add_weight<nn::ConvTranspose1dImpl>(found, module, "ConvTranspose1d", transposed) ||
      add_weight<nn::ConvTranspose2dImpl>(found, module, "ConvTranspose2d", transposed) ||
      add_weight<nn::ConvTranspose3dImpl>(found, module, "ConvTranspose3d", transposed) ||
      add_weight<nn::EmbeddingImpl>(found, module, "Embedding", LayerKind::lookup) ||
      add_weight<nn::EmbeddingBagImpl>(found, module, "EmbeddingBag", LayerKind::bag) ||
      add_weight<nn::BilinearImpl>(found, module, "Bilinear", LayerKind::bilinear) ||
      detail::add_attention(found, module) || add_recurrent<nn::RNNImpl>(found, module, "RNN") ||
      add_recurrent<nn::LSTMImpl>(found, module, "LSTM") ||
      add_recurrent<nn::GRUImpl>(found, module, "GRU") ||
      add_recurrent<nn::RNNCellImpl>(found, module, "RNNCell") ||
      add_recurrent<nn::LSTMCellImpl>(found, module, "LSTMCell") ||
      add_recurrent<nn::GRUCellImpl>(found, module, "GRUCell");
  return found;
}

LIGHTLORA_INLINE const char* adaptable_types() {
  return "Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, "
         "Embedding, EmbeddingBag, Bilinear, MultiheadAttention, RNN, LSTM, GRU";
}

LIGHTLORA_INLINE std::string refusal_reason(const torch::nn::Module& module) {
  // Such as a LayerNorm. A module that holds layers as well is better answered with their names.
  const bool plain = module.children().empty() && !module.parameters(/*recurse=*/false).empty();
  if (plain) return std::string("none of ") + adaptable_types();
  return "";
}

namespace detail {

// Whether two tensors of one storage have an element in common.
inline bool elements_overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto end_of = [](const at::Tensor& t) {
    int64_t last = t.storage_offset();
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return last + 1;
  };
  const auto size = [](const at::Tensor& t) { return static_cast<int64_t>(t.element_size()); };
  const int64_t a_begin = a.storage_offset(), b_begin = b.storage_offset();
  const int64_t a_end = end_of(a), b_end = end_of(b);
  if (a_end * size(a) <= b_begin * size(b) || b_end * size(b) <= a_begin * size(a)) return false;
  if (size(a) != size(b) || a_begin == b_begin) return true;
  // Views such as two halves of a matrix's columns lie between each other.
  const int64_t first = std::min(a_begin, b_begin);
  const at::Tensor taken = at::zeros({std::max(a_end, b_end) - first}, at::kBool);
  taken.as_strided(a.sizes(), a.strides(), a_begin - first).fill_(true);
  return taken.as_strided(b.sizes(), b.strides(), b_begin - first).any().item<bool>();
}

}  // namespace detail

LIGHTLORA_INLINE bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_same(b)) return true;
  return a.has_storage() && b.has_storage() && a.is_alias_of(b) && detail::elements_overlap(a, b);
}

LIGHTLORA_INLINE bool looked_up_alike(LayerKind a, LayerKind b) {
  const auto in_products = [](LayerKind kind) {
    return kind == LayerKind::linear || kind == LayerKind::convolution;
  };
  return a == b || (in_products(a) && in_products(b));
}

LIGHTLORA_INLINE AdaptableLayers adaptable_layers(torch::nn::Module& model) {
  AdaptableLayers found;
  std::unordered_set<const torch::nn::Module*> seen, attention_outputs;
  const auto visit = [&](const std::string& path,
                         const std::shared_ptr<torch::nn::Module>& module) {
    if (!seen.insert(module.get()).second) return;
    auto weights = find_weights(module);
    if (const auto* attention = module->as<torch::nn::MultiheadAttention>()) {
      attention_outputs.insert(attention->out_proj.get());
    }
    for (auto& weight : weights) {
      if (attention_outputs.count(module.get()) > 0) weight.set_attention_output();
      const char* dot = path.empty() || weight.part().empty() ? "" : ".";
      const std::string full = path + dot + weight.part();
      found.targets.push_back({full, weight.type(), ""});
      found.weights.emplace_back(full, std::move(weight));
    }
    for (auto& vector : find_vectors(module)) {
      const std::string full = path + (path.empty() ? "" : ".") + vector.part();
      found.targets.push_back({full, vector.type(), "", /*vector=*/true});
      found.weights.emplace_back(full, std::move(vector));
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
  const LoRAOptions& options = adapter.options();
  TORCH_CHECK_VALUE(
      !has_dropout(adapter), "'", adapter.layer().name,
      "': expected dropout 0 for an adapter that is a part of the weight, got ",
      std::max({options.dropout(), options.rank_dropout(), options.module_dropout()}),
      "; hint: a recurrent layer and a bound weight have no input of the adapter's own");
}

LIGHTLORA_INLINE void fit(Adapter& adapter, const LayerWeight& layer) {
  TORCH_CHECK_VALUE(adapter.options().rank_dropout() == 0 || adapter.has_factors(), "'",
                    adapter.layer().name, "': rank_dropout cannot be combined with ",
                    adapter.options().dora() ? "DoRA" : "the " + adapter.variant() + " variant",
                    ": it has no ranks that could be left out; hint: module_dropout");
  place(adapter, layer);
  adapter.prepare(layer.matrix().detach());
}

LIGHTLORA_INLINE WeightBinding::WeightBinding(const LayerWeight& weight, const torch::Tensor& delta,
                                              const std::string& name)
    : weight_(weight), base_(weight.tensor()) {
  TORCH_CHECK(!delta.requires_grad() || !at::isReducedFloatingType(base_.scalar_type()), "'", name,
              "': expected an fp32 weight for training through a plain ", "layer, got ",
              base_.scalar_type(),
              "; hint: bind no half-precision weights, or keep this layer in fp32");
  weight_.tensor() = weight_.plus(delta);
}

LIGHTLORA_INLINE bool WeightBinding::stale() const {
  return base_.device() != weight_.tensor().device() ||
         base_.scalar_type() != weight_.tensor().scalar_type();
}

}  // namespace lightlora
