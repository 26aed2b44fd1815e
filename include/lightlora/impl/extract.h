// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/extract.h>

#include <ATen/ATen.h>
#include <lightlora/layers.h>

#include <algorithm>

namespace lightlora {

LIGHTLORA_INLINE AdapterState extract(torch::nn::Module& base, torch::nn::Module& tuned,
                                      const Targets& targets, const Keep& keep) {
  torch::NoGradGuard no_grad;
  auto from = adaptable_layers(base);
  auto to = adaptable_layers(tuned);
  const auto paths = targets.select(from.targets);
  AdapterState state;
  for (const auto& [path, weight] : from.weights) {
    if (std::find(paths.begin(), paths.end(), path) == paths.end()) continue;
    const auto found =
        std::find_if(to.weights.begin(), to.weights.end(),
                     [&, &name = path](const auto& item) { return item.first == name; });
    TORCH_CHECK(
        found != to.weights.end() && found->second.tensor().sizes() == weight.tensor().sizes(),
        "lightlora::extract: '", path, "': expected a weight ", weight.tensor().sizes(),
        " in the fine-tuned model, got ", found == to.weights.end() ? "none" : "another shape",
        "; hint: both models must have one architecture");
    const at::Tensor difference =
        found->second.matrix().to(at::kDouble).to(weight.tensor().device()) -
        weight.matrix().to(at::kDouble);
    if (difference.count_nonzero().item<int64_t>() == 0) continue;
    state.push_back(detail::classic_state(weight.info(path), factorise(difference, keep)));
  }
  TORCH_CHECK(!state.empty(), "lightlora::extract: expected models that differ in the selected ",
              paths.size(), " layers, got equal ones");
  return state;
}

}  // namespace lightlora
