// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/state.h>

#include <ATen/ATen.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/variants/variants.h>

#include <cmath>
#include <optional>

namespace lightlora {

LIGHTLORA_INLINE LayerState state_of(const Adapter& adapter, Bases bases) {
  const auto copy = [](const at::Tensor& tensor) {
    return tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous();
  };
  LayerState state{adapter.variant(), adapter.layer(), adapter.options(), adapter.scale(), {}, {}};
  for (const auto& item : adapter.trained()) state.trained[item.key()] = copy(item.value());
  for (const auto& item : adapter.frozen()) {
    if (bases == Bases::by_seed && adapter.is_seeded(item.key())) continue;
    state.frozen[item.key()] = copy(item.value());
  }
  return state;
}

namespace detail {

inline void check_trained(const Adapter& adapter, const LayerState& state) {
  const std::string where = "'" + adapter.layer().name + "'";
  const NamedTensors trained = adapter.trained();
  for (const auto& [name, value] : state.trained) {
    TORCH_CHECK(trained.contains(name), where, ": expected no tensor '", name, "' in a ",
                adapter.variant(), " adapter, got one");
    TORCH_CHECK(trained[name].sizes() == value.sizes(), where, ": expected '", name, "' ",
                trained[name].sizes(), ", got ", value.sizes(),
                "; hint: rank, aux_in or aux_out differ from those it was trained with");
  }
  for (const auto& item : trained) {
    TORCH_CHECK(state.trained.count(item.key()), where, ": expected a tensor '", item.key(),
                "', got none");
  }
}

// Whether a state lacks what `prepare` makes of the layer's weight.
inline bool lacks_weight(const Adapter& adapter, const LayerState& state) {
  for (const auto& item : adapter.frozen()) {
    if (adapter.is_of_weight(item.key()) && state.frozen.count(item.key()) == 0) return true;
  }
  return false;
}

// `prepared`: the adapter has what `prepare` makes of the layer's weight.
inline void check_frozen(const Adapter& adapter, const LayerState& state, bool prepared) {
  const std::string where = "'" + adapter.layer().name + "'";
  const NamedTensors frozen = adapter.frozen();
  for (const auto& item : state.frozen) {
    TORCH_CHECK(frozen.contains(item.first), where, ": expected no frozen tensor '", item.first,
                "' in a ", adapter.variant(), " adapter, got one");
  }
  for (const auto& item : frozen) {
    const auto found = state.frozen.find(item.key());
    const bool present = found != state.frozen.end();
    const bool seeded = adapter.is_seeded(item.key());
    if (!present && seeded) continue;
    const bool of_weight = !present && adapter.is_of_weight(item.key());
    if (of_weight && prepared) continue;
    TORCH_CHECK(!of_weight, where, ": expected the '", item.key(), "' of a ", adapter.variant(),
                " adapter, which follows from the layer's weight, got a file without it; hint: ",
                "patch the model with it, and save that");
    TORCH_CHECK(present && found->second.sizes() == item.value().sizes(), where,
                ": expected a frozen tensor '", item.key(), "' ", item.value().sizes(), ", got ",
                present ? "one of another shape" : "none");
    if (!seeded) continue;
    const at::Tensor own = item.value().cpu().to(at::kDouble);
    // Embedded bases may have been rounded to half precision.
    TORCH_CHECK(at::allclose(found->second.to(at::kDouble), own, /*rtol=*/1e-2, /*atol=*/1e-3),
                where, ": expected the embedded '", item.key(),
                "' to equal the basis of the seed, got ",
                "another; hint: the file was edited, or made by another basis version");
  }
}

}  // namespace detail

namespace detail {

inline void check_fits(const Adapter& adapter, const LayerState& state, bool prepared) {
  TORCH_CHECK(adapter.variant() == state.variant, "'", adapter.layer().name, "': expected a ",
              adapter.variant(), " adapter, got a ", state.variant, " one");
  check_trained(adapter, state);
  check_frozen(adapter, state, prepared);
}

inline void restore(Adapter& adapter, const LayerState& state, bool prepared) {
  check_fits(adapter, state, prepared);
  torch::NoGradGuard no_grad;
  for (auto& item : adapter.trained()) item.value().copy_(state.trained.at(item.key()));
  for (auto& item : adapter.frozen()) {
    const auto found = state.frozen.find(item.key());
    if (!adapter.is_seeded(item.key()) && found != state.frozen.end()) {
      item.value().copy_(found->second);
    }
  }
  adapter.set_scale(state.scale);
}

}  // namespace detail

LIGHTLORA_INLINE void check_fits(const Adapter& adapter, const LayerState& state) {
  detail::check_fits(adapter, state, /*prepared=*/false);
}

LIGHTLORA_INLINE void restore(Adapter& adapter, const LayerState& state) {
  detail::restore(adapter, state, /*prepared=*/false);
}

LIGHTLORA_INLINE std::shared_ptr<Adapter> make_adapter(const LayerState& state) {
  const VariantEntry& variant = find_variant(state.variant);
  auto adapter = variant.make(state.options, variant.layer_of(state.layer, state.trained));
  restore(*adapter, state);
  return adapter;
}

namespace detail {

LIGHTLORA_INLINE std::shared_ptr<Adapter> make_adapter_over(const LayerState& state,
                                                            const at::Tensor& weight) {
  const VariantEntry& variant = find_variant(state.variant);
  auto adapter = variant.make(state.options, variant.layer_of(state.layer, state.trained));
  const bool prepares = lacks_weight(*adapter, state);
  if (prepares) adapter->prepare(weight.detach().cpu());
  restore(*adapter, state, prepares);
  return adapter;
}

LIGHTLORA_INLINE LayerState classic_state(const LayerInfo& layer, const Factors& factors) {
  const auto dense = [](const at::Tensor& factor) {
    return factor.detach()
        .to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true)
        .contiguous();
  };
  LayerState state{
      ClassicAdapterImpl::kVariant, layer, LoRAOptions(factors.down.size(0)), 1.0, {}, {}};
  state.trained["down"] = dense(factors.down);
  state.trained["up"] = dense(factors.up);
  return state;
}

}  // namespace detail

namespace detail {

// Without ranks that do not count; one stays, so that there is a layer.
inline Factors counted_factors(const Adapter& adapter) {
  const Factors factors = adapter.factors();
  const at::Tensor counted = adapter.counted_ranks();
  if (!counted.defined() || counted.all().item<bool>()) return factors;
  at::Tensor places = counted.nonzero().flatten();
  if (places.numel() == 0) places = at::zeros({1}, places.options());
  return {factors.down.index_select(0, places), factors.up.index_select(1, places)};
}

}  // namespace detail

LIGHTLORA_INLINE LayerState to_classic(const Adapter& adapter, const Keep& keep,
                                       const at::Tensor& weight) {
  torch::NoGradGuard no_grad;
  for (const auto& item : adapter.trained()) {
    TORCH_CHECK(item.value().isfinite().all().item<bool>(), "'", adapter.layer().name,
                "': expected finite values as '", item.key(),
                "', got some that are not; hint: the ", "training diverged");
  }
  Factors factors;
  if (!adapter.has_factors()) {
    const LayerInfo& layer = adapter.layer();
    if (!weight.defined()) detail::check_delta(layer.name, layer.in, layer.out);
    factors = factorise(adapter.delta(weight), keep);
  } else {
    factors = detail::counted_factors(adapter);
    const double root = std::sqrt(std::abs(adapter.scale()));
    // A scale of one leaves the values bit for bit.
    if (adapter.scale() != 1.0) {
      factors = {factors.down * root, factors.up * (adapter.scale() < 0 ? -root : root)};
    }
    if (!keep.everything()) factors = truncate(factors, keep);
  }
  return detail::classic_state(adapter.layer(), factors);
}

LIGHTLORA_INLINE AdapterState to_classic(const AdapterState& state, const Keep& keep) {
  AdapterState result;
  for (const auto& layer : state) result.push_back(to_classic(*make_adapter(layer), keep));
  return result;
}

}  // namespace lightlora
