// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/state.h>
#include <lightlora/variants/dora.h>

#include <utility>

// DoRA's part of a layer's state, taken off and put back: other programs keep the lengths of the
// rows beside the factors, and what is cut is the part that is added to the weight.

namespace lightlora::detail {

struct DoRAState {
  at::Tensor magnitude;  ///< undefined without DoRA
  bool inputs = false;
};

/// Takes DoRA's part; the state becomes one without.
inline DoRAState take_dora(LayerState& layer) {
  const auto found = layer.trained.find(DoRA::kMagnitude);
  if (!layer.options.dora() || found == layer.trained.end()) return {};
  DoRAState dora{found->second, layer.options.dora_inputs()};
  layer.trained.erase(found);
  layer.options.dora(false).dora_inputs(false);
  return dora;
}

inline void put_dora(LayerState& layer, DoRAState dora) {
  if (!dora.magnitude.defined()) return;
  layer.trained[DoRA::kMagnitude] = std::move(dora.magnitude);
  layer.options.dora(true).dora_inputs(dora.inputs);
}

}  // namespace lightlora::detail
