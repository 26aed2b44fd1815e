// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/peft_config.h>
#include <lightlora/state.h>

#include <algorithm>
#include <cstdint>
#include <utility>

// AdaLoRA as PEFT's files have it: the ranks that the budget has left alone, and in the
// configuration which they are of those at the start.

namespace lightlora::detail {

// Whether some rank counts: before a training none does, and none is to be left out.
inline bool is_trained_adalora(const AdapterState& state) {
  return std::any_of(state.begin(), state.end(), [](const LayerState& layer) {
    return layer.trained.at("lambda").count_nonzero().item<int64_t>() > 0;
  });
}

// Which ranks a file holds: (rank), bool.
inline at::Tensor kept_ranks(const LayerState& layer, bool trained) {
  const at::Tensor lambda = layer.trained.at("lambda").flatten();
  return trained ? lambda.ne(0) : at::ones_like(lambda, at::kBool);
}

inline JsonValue::Object adalora_fields(const AdapterState& state) {
  const bool trained = is_trained_adalora(state);
  const double scale = state.front().scale;
  int64_t first = 0;
  for (const auto& layer : state) {
    first = std::max(first, layer.trained.at("lambda").numel());
    TORCH_CHECK(layer.scale == scale, "'", layer.layer.name, "': expected scale ", scale,
                " in every layer, as PEFT's configuration of adalora can say, got ", layer.scale,
                "; hint: write the native format");
  }
  JsonValue::Object pattern;
  bool pruned = false;
  int64_t left = 0;
  for (const auto& layer : state) {
    const at::Tensor kept = kept_ranks(layer, trained).cpu();
    JsonValue::Array ranks;
    for (int64_t i = 0; i < first; ++i) {
      const bool counts = i < kept.numel() && kept[i].item<bool>();
      ranks.emplace_back(counts);
      left += counts ? 1 : 0;
      pruned = pruned || !counts;
    }
    pattern.emplace_back(layer.layer.name + ".lora_E", std::move(ranks));
  }
  const auto layers = static_cast<int64_t>(state.size());
  JsonValue::Object fields{{"init_r", first},
                           {"target_r", std::max<int64_t>(1, left / layers)},
                           {"total_step", 1},
                           {"lora_alpha", scale * (static_cast<double>(first) + kPeftAdaLoRA)},
                           {"bias", "none"},
                           {"fan_in_fan_out", false},
                           {"init_lora_weights", true},
                           {"lora_dropout", 0.0},
                           {"r", 8}};
  if (pruned) fields.emplace_back("rank_pattern", std::move(pattern));
  return fields;
}

// The layers with those ranks; their scale stands in the configuration.
inline AdapterState adalora_layers(AdapterState state) {
  const bool trained = is_trained_adalora(state);
  for (auto& layer : state) {
    const at::Tensor places = kept_ranks(layer, trained).nonzero().flatten();
    for (const char* name : {"down", "lambda"}) {
      layer.trained[name] = layer.trained.at(name).index_select(0, places);
    }
    layer.trained["up"] = layer.trained.at("up").index_select(1, places);
    layer.scale = 1.0;
  }
  return state;
}

}  // namespace lightlora::detail
