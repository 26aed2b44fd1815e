// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <utility>
#include <vector>

namespace lightlora {

/// Parameter groups for an optimiser that trains the output side faster (LoRA+).
/// Equation: rate(up side) = ratio * rate(everything else)
/// Paper:    Hayou et al. 2024, "LoRA+", arXiv:2402.12354
/// `options` are those of the optimiser, such as `torch::optim::AdamWOptions(1e-4)`; PEFT and
/// sd-scripts suggest a ratio of 16. DoRA's magnitudes, and variants with one core, take the lower
/// rate. Errors: c10::ValueError unless ratio > 0
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> param_groups(const Patched& lora, Options options,
                                                            double ratio) {
  TORCH_CHECK_VALUE(ratio > 0, "lightlora::param_groups: expected a ratio > 0, got ", ratio);
  std::vector<torch::Tensor> up, others;
  for (const auto& name : lora->sets()) {
    for (const auto& adapter : lora->adapters(name)) {
      for (const auto& item : adapter->trained()) {
        (adapter->is_up_side(item.key()) ? up : others).push_back(item.value());
      }
    }
  }
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](std::vector<torch::Tensor> tensors) {
    if (!tensors.empty()) groups.emplace_back(std::move(tensors), std::make_unique<Options>(options));
  };
  add(std::move(others));
  options.lr(options.lr() * ratio);
  add(std::move(up));
  return groups;
}

}  // namespace lightlora
