// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/low_rank.h>
#include <lightlora/variants/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lightlora {

/// Everything that rebuilds one adapter without its model. Files are read into and written from
/// this; the dialects know nothing of modules, and the modules nothing of dialects.
struct LayerState {
  std::string variant;  ///< its name in the list of variants
  LayerInfo layer;      ///< what it adapts
  LoRAOptions options;  ///< what it was made with
  double scale = 1.0;   ///< factor of the delta
  /// What was trained, by name, on the CPU.
  std::map<std::string, at::Tensor> trained;
  /// Empty when the bases are to be made again from their seed.
  std::map<std::string, at::Tensor> frozen;
};

/// The adapters of one model, in the model's order.
using AdapterState = std::vector<LayerState>;

/// Whether a state also holds the frozen bases.
enum class Bases { by_seed, embedded };

/// A copy of an adapter's values on the CPU. Bases made of the layer's weight are always in it.
inline LayerState state_of(const Adapter& adapter, Bases bases = Bases::by_seed) {
  const auto copy = [](const NamedTensors& tensors) {
    std::map<std::string, at::Tensor> result;
    for (const auto& item : tensors) {
      result[item.key()] = item.value().detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true)
                               .contiguous();
    }
    return result;
  };
  return {adapter.variant(), adapter.layer(), adapter.options(), adapter.scale(),
          copy(adapter.trained()),
          bases == Bases::embedded || adapter.bases_from_weight()
              ? copy(adapter.frozen())
              : std::map<std::string, at::Tensor>{}};
}

/// Whether a state's values can be put into an adapter.
/// Errors: c10::Error with the layer, the tensor and both shapes if the variant differs, a trained
///         tensor is missing, unknown or of another shape, or embedded bases are not the seed's
inline void check_fits(const Adapter& adapter, const LayerState& state) {
  const std::string where = "lightlora: '" + adapter.layer().name + "'";
  TORCH_CHECK(adapter.variant() == state.variant, where, ": expected a ", adapter.variant(),
              " adapter, got a ", state.variant, " one");
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
  for (const auto& item : adapter.frozen()) {
    const auto found = state.frozen.find(item.key());
    if (adapter.bases_from_weight()) {
      TORCH_CHECK(found != state.frozen.end() && found->second.sizes() == item.value().sizes(),
                  where, ": expected a frozen tensor '", item.key(), "' ", item.value().sizes(),
                  ", got ", found == state.frozen.end() ? "none" : "one of another shape");
      continue;
    }
    if (found == state.frozen.end()) continue;
    const at::Tensor own = item.value().cpu().to(at::kDouble);
    // Embedded bases may have been rounded to half precision.
    TORCH_CHECK(found->second.sizes() == own.sizes() &&
                    at::allclose(found->second.to(at::kDouble), own, /*rtol=*/1e-2, /*atol=*/1e-3),
                where, ": expected the embedded '", item.key(), "' to equal the basis of seed ",
                adapter.options().aux_seed(),
                ", got another; hint: the file was edited, or made by another basis version");
  }
}

/// Puts values into an adapter that exists, cast to its dtype and device; errors as `check_fits`.
inline void restore(Adapter& adapter, const LayerState& state) {
  check_fits(adapter, state);
  torch::NoGradGuard no_grad;
  for (auto& item : adapter.trained()) item.value().copy_(state.trained.at(item.key()));
  if (adapter.bases_from_weight()) {
    for (auto& item : adapter.frozen()) item.value().copy_(state.frozen.at(item.key()));
  }
  adapter.set_scale(state.scale);
}

/// The adapter that a state describes, fp32 on the CPU.
inline std::shared_ptr<Adapter> make_adapter(const LayerState& state) {
  auto adapter = find_variant(state.variant).make(state.options, state.layer);
  restore(*adapter, state);
  return adapter;
}

namespace detail {

// Copies of finished factors as a classic layer of scale 1.
inline LayerState classic_state(const LayerInfo& layer, const Factors& factors) {
  const auto dense = [](const at::Tensor& factor) {
    return factor.detach()
        .to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true)
        .contiguous();
  };
  LayerState state{ClassicAdapterImpl::kVariant, layer, LoRAOptions(factors.down.size(0)), 1.0, {}, {}};
  state.trained["down"] = dense(factors.down);
  state.trained["up"] = dense(factors.up);
  return state;
}

}  // namespace detail

/// The same delta as plain low-rank factors with the scale folded in, for tools that know nothing of
/// variants: Light loses its bases into its factors, Fused keeps its full inner width, a variant
/// without factors is decomposed. Exact up to rounding with `Keep::all()`, and whenever the rank
/// suffices. The scale is split evenly between the two factors so that neither underflows in fp16.
/// Shapes: weight (out, in), needed only if the adapter's `needs_weight`
/// Errors: c10::Error if the weight is needed and missing
inline LayerState to_classic(const Adapter& adapter, const Keep& keep = Keep::all(),
                             const at::Tensor& weight = {}) {
  torch::NoGradGuard no_grad;
  Factors factors;
  if (!adapter.has_factors()) {
    factors = factorise(adapter.delta(weight), keep);
  } else {
    factors = adapter.factors();
    const double root = std::sqrt(std::abs(adapter.scale()));
    // A scale of one leaves the values bit for bit.
    if (adapter.scale() != 1.0) {
      factors = {factors.down * root, factors.up * (adapter.scale() < 0 ? -root : root)};
    }
    if (!keep.everything()) factors = truncate(factors, keep);
  }
  return detail::classic_state(adapter.layer(), factors);
}

/// `to_classic` of every layer of a state. Variants whose delta depends on the layers' weights need
/// the model: patch it and call its `to_classic`.
inline AdapterState to_classic(const AdapterState& state, const Keep& keep = Keep::all()) {
  AdapterState result;
  for (const auto& layer : state) result.push_back(to_classic(*make_adapter(layer), keep));
  return result;
}

/// Every Fused layer replaced by its best Light approximation of this rank; others as they are.
inline AdapterState split_fused(const AdapterState& state, int64_t rank) {
  AdapterState result;
  for (const auto& layer : state) {
    const auto adapter = make_adapter(layer);
    const auto fused = std::dynamic_pointer_cast<FusedAdapterImpl>(adapter);
    result.push_back(fused ? state_of(*fused->split(rank)) : layer);
  }
  return result;
}

}  // namespace lightlora
