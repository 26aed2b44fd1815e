// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/state.h>

#include <ATen/ATen.h>
#include <lightlora/variants/registry.h>
#include <lightlora/variants/variants.h>

#include <cmath>
#include <optional>

namespace lightlora {

LIGHTLORA_INLINE LayerState state_of(const Adapter& adapter, Bases bases) {
  const auto copy = [](const NamedTensors& tensors) {
    std::map<std::string, at::Tensor> result;
    for (const auto& item : tensors) {
      result[item.key()] =
          item.value().detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous();
    }
    return result;
  };
  return {adapter.variant(),
          adapter.layer(),
          adapter.options(),
          adapter.scale(),
          copy(adapter.trained()),
          bases == Bases::embedded || adapter.bases_from_weight()
              ? copy(adapter.frozen())
              : std::map<std::string, at::Tensor>{}};
}

LIGHTLORA_INLINE void check_fits(const Adapter& adapter, const LayerState& state) {
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

LIGHTLORA_INLINE void restore(Adapter& adapter, const LayerState& state) {
  check_fits(adapter, state);
  torch::NoGradGuard no_grad;
  for (auto& item : adapter.trained()) item.value().copy_(state.trained.at(item.key()));
  if (adapter.bases_from_weight()) {
    for (auto& item : adapter.frozen()) item.value().copy_(state.frozen.at(item.key()));
  }
  adapter.set_scale(state.scale);
}

LIGHTLORA_INLINE std::shared_ptr<Adapter> make_adapter(const LayerState& state) {
  LayerInfo layer = state.layer;
  // (IA)3's numbers tell what files do not: whether they are one for each channel. Those that scale a
  // convolution's inputs once were one for each place of the kernel.
  if (const auto scales = state.trained.find("l"); scales != state.trained.end()) {
    const at::Tensor& l = scales->second;
    if (l.sizes() == at::IntArrayRef({1, layer.in})) layer.kernel.clear();
    const bool by_channel = l.dim() == 2 && l.size(1) == 1 && l.size(0) > 0 && l.size(0) < layer.out;
    if (by_channel && layer.out % l.size(0) == 0) layer.out_kernel = {layer.out / l.size(0)};
  }
  auto adapter = find_variant(state.variant).make(state.options, layer);
  restore(*adapter, state);
  return adapter;
}

namespace detail {

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

LIGHTLORA_INLINE LayerState to_classic(const Adapter& adapter, const Keep& keep,
                                       const at::Tensor& weight) {
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

LIGHTLORA_INLINE AdapterState to_classic(const AdapterState& state, const Keep& keep) {
  AdapterState result;
  for (const auto& layer : state) result.push_back(to_classic(*make_adapter(layer), keep));
  return result;
}

LIGHTLORA_INLINE AdapterState split_fused(const AdapterState& state, int64_t rank) {
  AdapterState result;
  for (const auto& layer : state) {
    const auto adapter = make_adapter(layer);
    const auto fused = std::dynamic_pointer_cast<FusedAdapterImpl>(adapter);
    result.push_back(fused ? state_of(*fused->split(rank)) : layer);
  }
  return result;
}

LIGHTLORA_INLINE LayerState truncate_rank(const LayerState& layer, int64_t rank) {
  TORCH_CHECK_VALUE(rank >= 1, "lightlora::truncate_rank: '", layer.layer.name,
                    "': expected rank >= 1, got ", rank);
  const auto adapter = make_adapter(layer);
  if (adapter->has_factors() && adapter->rank() <= rank) return to_classic(*adapter);
  return to_classic(*adapter, Keep::rank(rank));
}

LIGHTLORA_INLINE LayerState truncate_in_variant(const LayerState& layer, int64_t rank) {
  const auto adapter = make_adapter(layer);
  if (adapter->rank() <= rank) return layer;
  if (layer.variant == FusedAdapterImpl::kVariant) return split_fused({layer}, rank).front();
  const bool light = layer.variant == LightAdapterImpl::kVariant;
  if (!light || layer.options.aux_init() != AuxInit::orthogonal) return truncate_rank(layer, rank);
  LayerState core = layer;
  core.variant = ClassicAdapterImpl::kVariant;
  core.layer.in = layer.trained.at("down").size(1);
  core.layer.out = layer.trained.at("up").size(0);
  core.frozen.clear();
  LayerState result = layer;
  result.trained = truncate_rank(core, rank).trained;
  result.scale = 1.0;
  result.options.rank(rank).network_alpha(std::nullopt);
  return result;
}

}  // namespace lightlora
