// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>

#include <functional>
#include <vector>

namespace lightlora {

/// A part of a model: tensors in, one tensor out.
using Segment = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// Gradient checkpointing of one segment: `segment(inputs)`, of which the backward pass keeps the
/// inputs alone and computes the rest again: about a third more time for a fraction of the memory.
/// Gradients are those of the plain call, also of parameters that the segment uses; the random
/// state and autocast are those of the first run. Knows nothing of adapters: see `checkpoint`.
/// Paper:  Chen et al. 2016, arXiv:1604.06174
/// Shapes: as `segment` has them; inputs may be undefined, but not all
/// Errors: c10::ValueError if no input is defined
at::Tensor recompute(Segment segment, const std::vector<at::Tensor>& inputs);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/recompute.h>
#endif
