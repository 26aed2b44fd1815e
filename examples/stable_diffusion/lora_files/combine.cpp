// SPDX-License-Identifier: Apache-2.0
#include "lora_files/combine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace lora_files {
namespace {

using lightlora::AdapterState;
using lightlora::Components;
using lightlora::LayerState;

void refuse_dora(const Weighted& input, const LayerState& layer) {
  TORCH_CHECK(!layer.options.dora(), "'", input.path, "': layer '", layer.layer.name,
              "': DoRA cannot be added up: its delta depends on the base model; hint: merge the "
              "files into a model with text_to_image --merge_to");
}

// Rotations and their like: what they add follows from the layer's weight.
void refuse_model_dependent(const Weighted& input, const LayerState& layer) {
  const auto sample =
      lightlora::find_variant(layer.variant).make(lightlora::LoRAOptions(4), {"layer", 64, 64});
  TORCH_CHECK(!sample->needs_weight(), "'", input.path, "': layer '", layer.layer.name,
              "': expected adapters whose deltas can be added up, got ", layer.variant,
              ", whose delta depends on the base model; hint: merge the files into a model with ",
              "text_to_image --merge_to");
}

Components weighted(const Weighted& input) {
  Components result = input.components;
  if (input.weight == 1.0) return result;
  for (auto& [component, state] : result) {
    for (auto& layer : state) {
      refuse_dora(input, layer);
      layer.scale *= input.weight;
      layer.options.network_alpha(layer.scale * static_cast<double>(layer.options.rank()));
    }
  }
  return result;
}

}  // namespace

Components combine(const std::vector<Weighted>& inputs) {
  if (inputs.size() == 1) return weighted(inputs.front());
  std::map<std::string, std::vector<lightlora::Weighted>> states;
  for (const auto& input : inputs) {
    for (const auto& [component, state] : weighted(input)) {
      for (const auto& layer : state) {
        refuse_dora(input, layer);
        refuse_model_dependent(input, layer);
      }
      states[component].push_back({lightlora::to_classic(state), 1.0});
    }
  }
  Components result;
  for (const auto& [component, all] : states) result[component] = lightlora::sum(all);
  return result;
}

Components cut(const Components& components, const lightlora::Keep& keep, lightlora::As as) {
  if (keep.everything()) return components;
  Components result;
  for (const auto& [component, state] : components) {
    result[component] = lightlora::cut(state, keep, as);
  }
  return result;
}

Loss loss_of(const Components& whole, const Components& cut) {
  Loss loss;
  double all = 0, lost = 0;
  for (const auto& [component, state] : whole) {
    const auto& less = cut.at(component);
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (state[i].options.dora() || lightlora::make_adapter(state[i])->needs_weight()) continue;
      const lightlora::AdapterState before{state[i]}, after{less.at(i)};
      const double energy = lightlora::delta_product(before, before);
      const double error = lightlora::delta_distance(before, after);
      all += energy;
      lost += error * error;
      const double relative = energy > 0 ? error / std::sqrt(energy) : 0;
      if (relative <= loss.largest_error) continue;
      loss.largest_error = relative;
      loss.layer = state[i].layer.name;
    }
  }
  if (all > 0) loss.kept = 1 - lost / all;
  return loss;
}

int64_t trained_bytes(const Components& components, int64_t element_size) {
  int64_t values = 0;
  for (const auto& [component, state] : components) {
    for (const auto& layer : state) {
      for (const auto& item : layer.trained) values += item.second.numel();
    }
  }
  return values * element_size;
}

}  // namespace lora_files
