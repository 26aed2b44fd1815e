// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/truncate.h>

#include <lightlora/variants/variants.h>

#include <optional>

namespace lightlora {

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
