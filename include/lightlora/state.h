// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/variants/variants.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lightlora {

/// Everything that rebuilds one adapter without its model. Files are read into and written from
/// this; the dialects know nothing of modules, and the modules nothing of dialects.
struct LayerState {
  std::string variant;
  LayerInfo layer;
  LoRAOptions options;
  double scale = 1.0;
  std::map<std::string, at::Tensor> trained;
  /// Empty when the bases are to be made again from their seed.
  std::map<std::string, at::Tensor> frozen;
};

/// The adapters of one model, in the model's order.
using AdapterState = std::vector<LayerState>;

/// Whether a state also holds the frozen bases.
enum class Bases { by_seed, embedded };

/// A copy of an adapter's values on the CPU.
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
          bases == Bases::embedded ? copy(adapter.frozen()) : std::map<std::string, at::Tensor>{}};
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
  adapter.set_scale(state.scale);
}

/// The adapter that a state describes, fp32 on the CPU.
inline std::shared_ptr<Adapter> make_adapter(const LayerState& state) {
  auto adapter = find_variant(state.variant).make(state.options, state.layer);
  restore(*adapter, state);
  return adapter;
}

/// The same deltas as plain low-rank factors with the scale folded in, for tools that know nothing
/// of variants: Light loses its bases into its factors, Fused keeps its full inner width.
/// The scale is split evenly between the two factors so that neither underflows in fp16.
inline LayerState to_classic(const Adapter& adapter) {
  torch::NoGradGuard no_grad;
  const Factors factors = adapter.factors();
  const double root = std::sqrt(std::abs(adapter.scale()));
  const double sign = adapter.scale() < 0 ? -1.0 : 1.0;
  LayerState state{"classic", adapter.layer(), LoRAOptions(factors.down.size(0)), 1.0, {}, {}};
  const auto dense = [](const at::Tensor& t) { return t.detach().to(at::kCPU).contiguous(); };
  // A scale of one leaves the values bit for bit.
  const bool plain = adapter.scale() == 1.0;
  state.trained["down"] = dense(plain ? factors.down.clone() : factors.down * root);
  state.trained["up"] = dense(plain ? factors.up.clone() : factors.up * (root * sign));
  return state;
}

/// `to_classic` of every layer.
inline AdapterState to_classic(const AdapterState& state) {
  AdapterState result;
  for (const auto& layer : state) result.push_back(to_classic(*make_adapter(layer)));
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
