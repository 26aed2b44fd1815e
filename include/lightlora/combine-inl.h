// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/combine.h>

#include <ATen/ATen.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/layer_weights.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

// The adapters of one layer and their factors in the sum.
using Parts = std::vector<std::pair<std::shared_ptr<const Adapter>, double>>;

// The parts of each layer, in the order in which the layers were met.
struct PartsByLayer {
  std::vector<std::string> order;
  std::map<std::string, Parts> parts;

  void add(std::shared_ptr<const Adapter> adapter, double weight) {
    const LayerInfo& layer = adapter->layer();
    Parts& own = parts[layer.name];
    if (own.empty()) order.push_back(layer.name);
    if (!own.empty()) {
      const LayerInfo& first = own.front().first->layer();
      TORCH_CHECK(first.in == layer.in && first.out == layer.out, "'", layer.name,
                  "': expected adapters of one size, got ", first.in, " -> ", first.out, " and ",
                  layer.in, " -> ", layer.out, "; hint: they belong to two kinds of model");
    }
    own.emplace_back(std::move(adapter), weight);
  }
};

// Factors with scale and weight folded in, half of it on either side and the sign in `up`.
inline Factors weighted_factors(const Adapter& adapter, double weight) {
  const double total = adapter.scale() * weight, root = std::sqrt(std::abs(total));
  const Factors factors = adapter.factors();
  return {factors.down * root, factors.up * (total < 0 ? -root : root)};
}

inline Factors sum_of_factors(const std::vector<Factors>& all, const std::string& path) {
  Factors sum = all[0];
  for (std::size_t i = 1; i < all.size(); ++i) {
    TORCH_CHECK(all[i].down.size(0) == sum.down.size(0), "'", path,
                "': expected adapters of one rank for the linear combination, got ",
                sum.down.size(0), " and ", all[i].down.size(0), "; hint: use cat or svd");
    sum = {sum.down + all[i].down, sum.up + all[i].up};
  }
  return sum;
}

inline Factors combine_layer(const std::string& path, const Parts& parts, Combine how,
                             const Keep& keep, const at::Tensor& layer_weight) {
  bool factors_only = true;
  for (const auto& part : parts) factors_only = factors_only && part.first->has_factors();
  TORCH_CHECK(factors_only || how == Combine::svd, "'", path,
              "': expected variants with low-rank factors, got one without; hint: use svd");
  if (!factors_only) {
    at::Tensor sum;
    for (const auto& [adapter, weight] : parts) {
      const LayerInfo& layer = adapter->layer();
      if (!layer_weight.defined()) check_delta(path, layer.in, layer.out);
      const at::Tensor delta = adapter->delta(layer_weight) * weight;
      sum = sum.defined() ? sum + delta : delta;
    }
    return factorise(sum, keep);
  }
  std::vector<Factors> all;
  for (const auto& [adapter, weight] : parts) all.push_back(weighted_factors(*adapter, weight));
  if (how == Combine::linear) return sum_of_factors(all, path);
  const Factors side_by_side = concatenate(all, std::vector<double>(all.size(), 1.0));
  return how == Combine::cat ? side_by_side : truncate(side_by_side, keep);
}

inline LayerState cut_layer(const LayerState& layer, const Keep& keep, As as) {
  LayerState plain = layer;
  DoRAState dora = take_dora(plain);
  const auto adapter = make_adapter(plain);
  const bool fits = keep.admits(adapter->rank());
  if (fits && as == As::variant) return layer;
  LayerState result = to_classic(*adapter, fits && adapter->has_factors() ? Keep::all() : keep);
  if (as == As::variant) {
    // A share of the energy may need the whole rank.
    if (adapter->rank() <= result.options.rank()) return layer;
    if (const auto own = adapter->cut(keep)) result = state_of(*own);
  }
  put_dora(result, std::move(dora));
  return result;
}

}  // namespace detail

LIGHTLORA_INLINE AdapterState to_classic(const Patched& lora, const Keep& keep,
                                         const std::string& name) {
  AdapterState result;
  for (const auto& adapter : lora->adapters(name)) {
    result.push_back(to_classic(*adapter, keep, lora->weight_of(adapter->layer().name)));
  }
  return result;
}

LIGHTLORA_INLINE AdapterState cut(const AdapterState& state, const Keep& keep, As as) {
  torch::NoGradGuard no_grad;
  AdapterState result;
  for (const auto& layer : state) result.push_back(detail::cut_layer(layer, keep, as));
  return result;
}

LIGHTLORA_INLINE AdapterState sum(const std::vector<Weighted>& adapters, Combine how,
                                  const Keep& keep) {
  torch::NoGradGuard no_grad;
  detail::PartsByLayer layers;
  for (const auto& [state, weight] : adapters) {
    for (const auto& layer : state) layers.add(make_adapter(layer), weight);
  }
  AdapterState result;
  for (const auto& path : layers.order) {
    const auto& parts = layers.parts[path];
    result.push_back(detail::classic_state(
        parts[0].first->layer(), detail::combine_layer(path, parts, how, keep, at::Tensor())));
  }
  return result;
}

LIGHTLORA_INLINE void combine(const Patched& lora, const std::string& name,
                              const std::map<std::string, double>& weights, Combine how,
                              const Keep& keep) {
  TORCH_CHECK_VALUE(!weights.empty(), "'", name,
                    "': expected at least one adapter set to combine, got none");
  torch::NoGradGuard no_grad;
  detail::PartsByLayer layers;
  for (const auto& [set, weight] : weights) {
    for (const auto& adapter : lora->adapters(set)) layers.add(adapter, weight);
  }
  AdapterState state;
  for (const auto& path : layers.order) {
    const auto& parts = layers.parts[path];
    state.push_back(detail::classic_state(
        parts[0].first->layer(),
        detail::combine_layer(path, parts, how, keep, lora->weight_of(path))));
  }
  const auto active = lora->active();
  lora->add(name, state);
  lora->set_active(active);
}

LIGHTLORA_INLINE NormReport limit_norm(const Patched& lora, double limit, const std::string& name) {
  TORCH_CHECK_VALUE(limit > 0, "expected a limit > 0, got ", limit);
  torch::NoGradGuard no_grad;
  NormReport report;
  const auto adapters = lora->adapters(name);
  for (const auto& adapter : adapters) {
    const bool own_weight = adapter->needs_weight();
    const at::Tensor weight = own_weight ? lora->weight_of(adapter->layer().name) : at::Tensor();
    const double norm = adapter->added(weight).norm().item<double>();
    if (norm > limit) {
      adapter->rescale(limit / norm);
      ++report.scaled;
    }
    const double now = std::min(norm, limit);
    report.mean += now / static_cast<double>(adapters.size());
    report.largest = std::max(report.largest, now);
  }
  return report;
}

LIGHTLORA_INLINE AdapterState extract(torch::nn::Module& base, torch::nn::Module& tuned,
                                      const Targets& targets, const Keep& keep) {
  torch::NoGradGuard no_grad;
  auto from = adaptable_layers(base);
  auto to = adaptable_layers(tuned);
  const auto paths = targets.select(from.targets);
  AdapterState state;
  for (const auto& [path, weight] : from.weights) {
    if (std::find(paths.begin(), paths.end(), path) == paths.end()) continue;
    const auto found =
        std::find_if(to.weights.begin(), to.weights.end(),
                     [&, &name = path](const auto& item) { return item.first == name; });
    TORCH_CHECK(
        found != to.weights.end() && found->second.tensor().sizes() == weight.tensor().sizes(), "'",
        path, "': expected a weight ", weight.tensor().sizes(), " in the fine-tuned model, got ",
        found == to.weights.end() ? "none" : "another shape",
        "; hint: both models must have one architecture");
    const at::Tensor difference =
        found->second.matrix().to(at::kDouble).to(weight.tensor().device()) -
        weight.matrix().to(at::kDouble);
    if (difference.count_nonzero().item<int64_t>() == 0) continue;
    state.push_back(detail::classic_state(weight.info(path), factorise(difference, keep)));
  }
  TORCH_CHECK(!state.empty(), "expected models that differ in the selected ", paths.size(),
              " layers, got equal ones");
  return state;
}

}  // namespace lightlora
