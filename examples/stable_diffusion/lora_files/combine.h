// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <optional>
#include <string>
#include <vector>

namespace lora_files {

/// The adapters of one file and the weight that they count with.
struct Weighted {
  std::string path;
  double weight = 1.0;
  lightlora::Components components;
};

/// One set of adapters for the weighted sum of several. A single file keeps its variants; of several,
/// each layer becomes classic with the ranks added up.
/// Errors: c10::Error naming the file and the layer for DoRA, whose deltas depend on the base model,
///         unless it stands alone with weight 1, and for layers of different sizes
lightlora::Components combine(const std::vector<Weighted>& inputs);

/// How far to cut the rank of each layer; neither: not at all.
struct Cut {
  std::optional<int64_t> rank;
  std::optional<double> energy;  ///< share of the sum of the squared singular values to keep
};

/// The adapters cut by the best approximation. With `keep_variant`, Light stays Light and Fused
/// becomes it; otherwise all become classic.
lightlora::Components cut_rank(const lightlora::Components& components, const Cut& cut,
                               bool keep_variant);

}  // namespace lora_files
