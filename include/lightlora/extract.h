// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/low_rank.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>

namespace lightlora {

/// The difference of a fine-tuned model and its base as classic adapters, layer by layer: the best
/// factors of `tuned - base` by a singular value decomposition in double.
/// A layer whose weights are equal in both models gets no adapter. Biases and norms have no place in
/// a LoRA: where they differ, the result cannot give back the fine-tuned model.
/// Errors: c10::Error if a target matches nothing, or a layer is missing in one of the models or has
///         another shape there
AdapterState extract(torch::nn::Module& base, torch::nn::Module& tuned, const Targets& targets,
                     const Keep& keep);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/extract.h>
#endif
