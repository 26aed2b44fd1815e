// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace sd {

/// While it lives, and gradients are recorded, blocks keep only the inputs of their segments
/// (resnets and transformers) for the backward pass and compute everything within again: about a
/// third more time for a fraction of the memory. One thread at a time.
///
/// Adapters must be active during the backward pass too, since the recomputation goes through them.
/// Paper: Chen et al. 2016, arXiv:1604.06174
class GradientCheckpointing {
 public:
  /// `preserve_rng_state`: see lightlora::recompute.
  explicit GradientCheckpointing(bool on, bool preserve_rng_state = true);
  ~GradientCheckpointing();
  GradientCheckpointing(const GradientCheckpointing&) = delete;
  GradientCheckpointing& operator=(const GradientCheckpointing&) = delete;

  /// Whether segments called now are to be recomputed.
  static bool enabled();

 private:
  bool before_, preserved_before_;
};

/// lightlora::recompute, with checkpointing off inside: a segment within a segment would be
/// computed three times.
at::Tensor recomputed(std::function<at::Tensor(const std::vector<at::Tensor>&)> compute,
                      const std::vector<at::Tensor>& inputs);

}  // namespace sd
