// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <string>
#include <vector>

namespace lora_files {

/// The adapters of one file and the weight that they count with.
struct Weighted {
  std::string path;
  double weight = 1.0;
  lightlora::Components components;
};

/// One set of adapters for the weighted sum of several. A single file keeps its variants; of
/// several, each layer becomes classic with the ranks added up.
/// Errors: c10::Error naming the file and the layer for DoRA, whose deltas depend on the base
///         model, unless it stands alone with weight 1, and for layers of different sizes
lightlora::Components combine(const std::vector<Weighted>& inputs);

/// Every component's adapters within `keep`.
lightlora::Components cut(const lightlora::Components& components, const lightlora::Keep& keep,
                          lightlora::As as);

/// What a cut leaves of the deltas.
struct Loss {
  double kept = 1;           ///< share of the energy (the sum of the squared values) of all layers
  double largest_error = 0;  ///< relative, of one layer's delta
  std::string layer;         ///< which
};

/// Compares adapters with what was cut from them. Layers with DoRA and those that need a model's
/// weights are left out.
Loss loss_of(const lightlora::Components& whole, const lightlora::Components& cut);

/// Bytes of what was trained, in a dtype of that size.
int64_t trained_bytes(const lightlora::Components& components, int64_t element_size);

}  // namespace lora_files
