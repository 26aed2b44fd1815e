// SPDX-License-Identifier: Apache-2.0
#include "lora_files/combine.h"

#include <lightlora/detail/formats/portable.h>

#include <algorithm>
#include <map>
#include <utility>

namespace lora_files {
namespace {

using lightlora::AdapterState;
using lightlora::Components;
using lightlora::LayerState;

void refuse_dora(const Weighted& input, const LayerState& layer) {
  TORCH_CHECK(!layer.options.dora(), "'", input.path, "': layer '", layer.layer.name,
              "': expected adapters that can be added up, got DoRA, whose delta depends on the base ",
              "model; hint: merge the files into a model with text_to_image --merge_to");
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

// One layer's factors of all files, side by side.
struct Stack {
  lightlora::LayerInfo layer;
  std::vector<lightlora::Factors> factors;
};

LayerState joined(const Stack& stack) {
  const std::vector<double> as_they_are(stack.factors.size(), 1.0);
  return lightlora::detail::classic_state(stack.layer,
                                          lightlora::concatenate(stack.factors, as_they_are));
}

LayerState cut_layer(LayerState layer, const Cut& cut, bool keep_variant) {
  // What DoRA scales is cut; the lengths of the rows stay.
  const bool inputs = layer.options.dora_inputs();
  const at::Tensor magnitude = lightlora::detail::take_magnitude(layer);
  std::optional<int64_t> rank = cut.rank;
  if (cut.energy) {
    const auto kept = lightlora::to_classic(*lightlora::make_adapter(layer),
                                            lightlora::Keep::energy(*cut.energy));
    rank = std::min(rank.value_or(kept.options.rank()), kept.options.rank());
  }
  LayerState result = keep_variant ? lightlora::truncate_in_variant(layer, *rank)
                                   : lightlora::truncate_rank(layer, *rank);
  if (magnitude.defined()) {
    result.trained["magnitude"] = magnitude;
    result.options.dora(true).dora_inputs(inputs);
  }
  return result;
}

}  // namespace

Components combine(const std::vector<Weighted>& inputs) {
  if (inputs.size() == 1) return weighted(inputs.front());
  std::map<std::string, std::vector<std::string>> order;
  std::map<std::pair<std::string, std::string>, Stack> stacks;
  for (const auto& input : inputs) {
    for (const auto& [component, state] : weighted(input)) {
      for (const auto& layer : state) {
        refuse_dora(input, layer);
        const LayerState classic = lightlora::to_classic(*lightlora::make_adapter(layer));
        const auto [found, is_new] =
            stacks.try_emplace({component, layer.layer.name}, Stack{classic.layer, {}});
        Stack& stack = found->second;
        if (is_new) order[component].push_back(layer.layer.name);
        TORCH_CHECK(stack.layer.in == classic.layer.in && stack.layer.out == classic.layer.out, "'",
                    input.path, "': layer '", layer.layer.name, "': expected ", stack.layer.in,
                    " -> ", stack.layer.out, " as in the files before it, got ", classic.layer.in,
                    " -> ", classic.layer.out, "; hint: the files belong to two kinds of model");
        stack.factors.push_back({classic.trained.at("down"), classic.trained.at("up")});
      }
    }
  }
  Components result;
  for (const auto& [component, layers] : order) {
    for (const auto& layer : layers) {
      result[component].push_back(joined(stacks.at({component, layer})));
    }
  }
  return result;
}

Components cut_rank(const Components& components, const Cut& cut, bool keep_variant) {
  if (!cut.rank && !cut.energy) return components;
  Components result;
  for (const auto& [component, state] : components) {
    for (const auto& layer : state) {
      result[component].push_back(cut_layer(layer, cut, keep_variant));
    }
  }
  return result;
}

}  // namespace lora_files
