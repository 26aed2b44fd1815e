// SPDX-License-Identifier: Apache-2.0
#include "lora_files/combine.h"

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
      for (const auto& layer : state) refuse_dora(input, layer);
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

}  // namespace lora_files
