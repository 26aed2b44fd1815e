// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>

#include <cstdint>

namespace lightlora {

/// How one call of a layer with adapters is computed.
/// `kept_merged`: one product with weight + delta, summed once and kept until a value changes.
/// `by_parts`: the layer, and the delta's product beside it; for variants without factors, dropout.
/// `merged`: one product each way with weight + delta, the sum made for this call.
/// `bypass`: the layer, and the two thin products beside it; `packed` the same from a packed
/// weight.
enum class Path { kept_merged, by_parts, merged, bypass, packed };

/// What the choice depends on.
struct Situation {
  bool training = true;   ///< the layer is in training mode
  bool gradients = true;  ///< autograd records
  bool half = false;      ///< the product runs in bf16 or fp16, which would round small deltas away
  bool dropping = false;  ///< an adapter leaves out inputs in this call
  bool factors = true;    ///< every adapter has factors
  bool packed = false;    ///< the weight is packed and usable
  bool thin = false;      ///< the CPU kernels for small ranks take this call
  int64_t rows = 0;       ///< product of the input's leading sizes
  int64_t in = 0;         ///< columns of the weight
  int64_t out = 0;        ///< rows of the weight
};

/// The one place where a layer decides how to compute; docs/speed.md has it as a table.
///
/// Both training routes need the two small gradients; beyond them the bypass reads and writes
/// rows * (in + out) elements and the merged weight twice in * out, so that merging wins from
/// rows = kappa * in * out / (in + out) on, whatever the rank. kappa is 2 from the count of
/// elements (ATen's out-of-place sum copies the weight first) and 6 where the bypass is one pass
/// over memory, as measured with the CPU kernels of small ranks. A weight that is merged anew in
/// each step cannot be packed once, and half precision never merges by itself: early updates would
/// vanish.
inline Path choose_path(const Situation& s, Route wanted) {
  const bool keeps = !s.training && !s.gradients && wanted != Route::bypass;
  if (keeps && (wanted == Route::merged || !s.half)) return Path::kept_merged;
  if (s.dropping || !s.factors) return Path::by_parts;
  if (wanted == Route::merged) return Path::merged;
  const Path beside = s.packed ? Path::packed : Path::bypass;
  if (wanted == Route::bypass || s.half || s.packed) return beside;
  const auto rows = static_cast<double>(s.rows), in = static_cast<double>(s.in),
             out = static_cast<double>(s.out);
  const double kappa = s.thin ? 6.0 : 2.0;
  return rows * (in + out) > kappa * in * out ? Path::merged : Path::bypass;
}

}  // namespace lightlora
