// SPDX-License-Identifier: Apache-2.0
#pragma once

// Adapters as vectors: canonical forms, products and norms of deltas that are never formed.
#include <lightlora/combine.h>
#include <lightlora/variants/variants.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>

namespace lightlora {

namespace detail {

// Factors of equal product that depend on the product alone, as many columns as before.
inline Factors canonical_factors(const Factors& factors) {
  const int64_t rank = factors.down.size(0);
  Factors own = truncate(factors, Keep::rank(rank));
  const at::Tensor largest = own.up.abs().argmax(/*dim=*/0, /*keepdim=*/true);
  const at::Tensor sign = own.up.gather(0, largest).sign();
  // A direction without any length has no sign either.
  const at::Tensor factor = at::where(sign == 0, at::ones_like(sign), sign);
  own = {own.down * factor.t(), own.up * factor};
  const int64_t missing = rank - own.down.size(0);
  return {at::constant_pad_nd(own.down, {0, 0, 0, missing}),
          at::constant_pad_nd(own.up, {0, missing})};
}

inline LayerState canonical_layer(const LayerState& layer) {
  TORCH_CHECK(!layer.options.dora(), "'", layer.layer.name,
              "': a canonical form cannot be combined ",
              "with DoRA: lengths of rows are no part of it");
  const auto form = find_variant(layer.variant).canonical_values(layer.options, layer.frozen);
  if (form == Canonical::as_they_are) return layer;
  LayerState result = form == Canonical::factors ? layer : to_classic(*make_adapter(layer));
  const auto dtype = result.trained.at("down").scalar_type();
  const double root = std::sqrt(std::abs(result.scale));
  const double signed_root = result.scale < 0 ? -root : root;
  const Factors own = canonical_factors({result.trained.at("down").to(at::kDouble) * root,
                                         result.trained.at("up").to(at::kDouble) * signed_root});
  result.trained = {{"down", own.down.to(dtype)}, {"up", own.up.to(dtype)}};
  result.scale = 1.0;
  result.options.network_alpha(std::nullopt);
  return result;
}

// Equation: sum of (Ua Da) o (Ub Db) = sum of (Ua^T Ub) o (Da Db^T)
inline double delta_product(const Adapter& a, const Adapter& b) {
  TORCH_CHECK(a.layer().in == b.layer().in && a.layer().out == b.layer().out, "'", a.layer().name,
              "': expected adapters of one size, got ", a.layer().in, " -> ", a.layer().out,
              " and ", b.layer().in, " -> ", b.layer().out,
              "; hint: they belong to two kinds of model");
  if (!a.has_factors() || !b.has_factors()) {
    return (a.delta().to(at::kDouble) * b.delta().to(at::kDouble)).sum().item<double>();
  }
  const Factors fa = a.factors(), fb = b.factors();
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const at::Tensor product = wide(fa.up).t().mm(wide(fb.up)) * wide(fa.down).mm(wide(fb.down).t());
  return a.scale() * b.scale() * product.sum().item<double>();
}

}  // namespace detail

LIGHTLORA_INLINE AdapterState canonical(const AdapterState& state) {
  torch::NoGradGuard no_grad;
  AdapterState result;
  for (const auto& layer : state) result.push_back(detail::canonical_layer(layer));
  return result;
}

LIGHTLORA_INLINE double delta_product(const AdapterState& a, const AdapterState& b) {
  torch::NoGradGuard no_grad;
  std::map<std::string, const LayerState*> others;
  for (const auto& layer : b) others[layer.layer.name] = &layer;
  double total = 0;
  for (const auto& layer : a) {
    const auto found = others.find(layer.layer.name);
    if (found == others.end()) continue;
    total += detail::delta_product(*make_adapter(layer), *make_adapter(*found->second));
  }
  return total;
}

LIGHTLORA_INLINE double delta_norm(const AdapterState& state) {
  return std::sqrt(std::max(0.0, delta_product(state, state)));
}

LIGHTLORA_INLINE double delta_distance(const AdapterState& a, const AdapterState& b) {
  const double squared = delta_product(a, a) - 2 * delta_product(a, b) + delta_product(b, b);
  return std::sqrt(std::max(0.0, squared));
}

}  // namespace lightlora
