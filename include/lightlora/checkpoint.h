// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <lightlora/recompute.h>

#include <optional>
#include <utility>
#include <vector>

namespace lightlora {

/// Gradient checkpointing: runs a part of a model without keeping its activations, and runs it again
/// in the backward pass. The adapters are active then as they were in the forward pass, which they
/// would not be with a checkpoint that knows nothing of them: a plain layer would be back at its base
/// weight, and its adapter would silently get no gradient.
/// `segment` takes one tensor and gives one; it must compute the same when run again (the random
/// state and autocast are restored). Call it inside an activation. While that activation is alive
/// during backward too, nothing is bound again and the second run costs the segment alone.
/// Shapes: x and the result as `segment` has them
template <typename Function>
torch::Tensor checkpoint(const Patched& lora, Function segment, const torch::Tensor& x) {
  const bool active = lora->is_active();
  return recompute(
      [lora, active, segment = std::move(segment)](const std::vector<torch::Tensor>& inputs) {
        std::optional<Activation> on;
        if (active) on.emplace(lora->activate());
        return segment(inputs[0]);
      },
      {x});
}

}  // namespace lightlora
