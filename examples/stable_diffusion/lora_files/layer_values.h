// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

// Adapters of single layers as matrices, without a model: cut into those of parts of the layer, and
// put together again, with equal deltas.

namespace lora_files {

/// What a file holds for one layer.
struct LayerValues {
  std::string where;   ///< begins the messages: file and layer
  std::string method;  ///< "LoRA", "LoHa", ..., as `TensorName::method`
  /// By `TensorName::part`, fp32. A bias is what is added, whatever the scale.
  std::map<std::string, at::Tensor> parts;
  double scale = 1;  ///< factor of the delta: alpha by the rank

  bool has(const char* part) const { return parts.count(part) > 0; }
  /// Inner width of what alpha is divided by; 0 where alpha is no strength or plays no part.
  int64_t rank() const;
  /// Outputs and inputs of the layer; 0 if the tensors do not tell.
  int64_t out() const;
  int64_t in() const;
};

/// Errors: c10::Error beginning with `where` for a factor without its partner, and for shapes that
///         do not go together
void check(const LayerValues& values);

/// Adapters of a layer's outputs, cut where `sizes` say, of which the sum is the layer's. Columns of
/// `up` that are zero for a part are left out, so that what `joined` put together comes out as it
/// was. A part that nothing reaches is none; unless none is reached at all.
/// Errors: c10::Error for sizes of another sum, and for methods whose deltas cannot be cut
std::vector<std::optional<LayerValues>> split(const LayerValues& whole,
                                              const std::vector<int64_t>& sizes);

/// One adapter with the outputs of all, one after the other; null for a part without an adapter.
/// Parts with one `down` keep it as one, so that what `split` cut comes out as it was; others stand
/// block by block, at the sum of the ranks.
/// Errors: c10::Error for several methods, or one whose deltas do not add up to one of its own
LayerValues joined(const std::vector<const LayerValues*>& parts, const std::vector<int64_t>& sizes);

/// The same with the two halves of the outputs exchanged.
/// Errors: c10::Error for methods that have no rows
LayerValues with_halves_swapped(LayerValues values);

/// Plain factors of equal delta, of the least rank that the method's form has: whole differences,
/// LoHa and LoKr become one of full rank; LoRA stays as it is.
/// Errors: c10::Error for methods whose delta needs the model's weights, and DoRA
LayerValues with_plain_factors(const LayerValues& values);

/// The scale moved into the values, by an even power of two in each factor, so that neither leaves
/// what fp16 can hold.
LayerValues with_scale_inside(LayerValues values);

}  // namespace lora_files
