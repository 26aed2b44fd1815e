// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/factors.h>

#include <optional>

namespace lightlora {

/// How much of a delta its classic factors keep: all of it, a rank, or a share of its energy (the
/// sum of the squared singular values).
class Keep {
 public:
  /// Everything: the smallest rank that is exact up to rounding.
  static Keep all() { return {}; }
  /// At most this rank, the best approximation. Errors: c10::ValueError if rank < 1
  static Keep rank(int64_t rank);
  /// The smallest rank that keeps this share of the energy, such as 0.99.
  /// Errors: c10::ValueError unless 0 < share <= 1
  static Keep energy(double share);

  /// Whether nothing is to be left out.
  bool everything() const { return !rank_ && !energy_; }
  /// How many of these singular values, in falling order, are kept; at least one.
  int64_t count(const at::Tensor& values) const;

 private:
  std::optional<int64_t> rank_;
  std::optional<double> energy_;
};

/// The best factors of a matrix, by a singular value decomposition in double.
/// Shapes: delta (out, in); down (r, in), up (out, r)
Factors factorise(const at::Tensor& delta, const Keep& keep = Keep::all());

/// The best factors of a product up * down, without ever forming it, in double.
/// Equation: up down = (Qu Ru)(Qd Rd)^T = Qu (U S V^T) Qd^T: the singular values are those of the
///           small core Ru Rd^T
/// Shapes: as in `Factors`
Factors truncate(const Factors& factors, const Keep& keep);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/low_rank.h>
#endif
