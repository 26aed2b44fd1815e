// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <lightlora/factors.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace lightlora {

/// How much of a delta its classic factors keep: all of it, a rank, or a share of its energy (the
/// sum of the squared singular values).
class Keep {
 public:
  /// Everything: the smallest rank that is exact up to rounding.
  static Keep all() { return {}; }
  /// At most this rank, the best approximation. Errors: c10::ValueError if rank < 1
  static Keep rank(int64_t rank) {
    TORCH_CHECK_VALUE(rank >= 1, "lightlora: expected rank >= 1, got ", rank);
    Keep keep;
    keep.rank_ = rank;
    return keep;
  }
  /// The smallest rank that keeps this share of the energy, such as 0.99.
  /// Errors: c10::ValueError unless 0 < share <= 1
  static Keep energy(double share) {
    TORCH_CHECK_VALUE(share > 0 && share <= 1, "lightlora: expected 0 < energy <= 1, got ", share);
    Keep keep;
    keep.energy_ = share;
    return keep;
  }

  /// Whether nothing is to be left out.
  bool everything() const { return !rank_ && !energy_; }
  /// How many of these singular values, in falling order, are kept; at least one.
  int64_t count(const at::Tensor& values) const {
    if (rank_) return std::min(*rank_, values.numel());
    const at::Tensor squares = values.to(at::kDouble).cpu().square().cumsum(0);
    const double total = squares.numel() > 0 ? squares[-1].item<double>() : 0.0;
    // What lies below rounding of the largest value is no rank.
    const double wanted = energy_ ? *energy_ * total : total * (1.0 - 1e-15);
    const auto below = (squares < wanted).sum().item<int64_t>();
    return std::clamp<int64_t>(below + 1, 1, values.numel());
  }

 private:
  std::optional<int64_t> rank_;
  std::optional<double> energy_;
};

namespace detail {

// U, S and V^T cut to what is kept, with sqrt(S) on either side so that neither underflows in fp16.
inline Factors split_evenly(const at::Tensor& u, const at::Tensor& s, const at::Tensor& vh,
                            const Keep& keep) {
  const int64_t rank = keep.count(s);
  const at::Tensor root = s.slice(0, 0, rank).sqrt();
  return {root.unsqueeze(1) * vh.slice(0, 0, rank), u.slice(1, 0, rank) * root};
}

}  // namespace detail

/// The best factors of a matrix, by a singular value decomposition in double.
/// Shapes: delta (out, in); down (r, in), up (out, r)
inline Factors factorise(const at::Tensor& delta, const Keep& keep = Keep::all()) {
  const auto [u, s, vh] = at::linalg_svd(delta.to(at::kDouble), /*full_matrices=*/false);
  return detail::split_evenly(u, s, vh, keep);
}

/// The best factors of a product up * down, without ever forming it, in double.
/// Equation: up down = (Qu Ru)(Qd Rd)^T = Qu (U S V^T) Qd^T: the singular values are those of the
///           small core Ru Rd^T
/// Shapes: as in `Factors`
inline Factors truncate(const Factors& factors, const Keep& keep) {
  const auto up = at::linalg_qr(factors.up.to(at::kDouble));
  const auto down = at::linalg_qr(factors.down.to(at::kDouble).t());
  const auto [u, s, vh] = at::linalg_svd(std::get<1>(up).mm(std::get<1>(down).t()),
                                         /*full_matrices=*/false);
  const Factors core = detail::split_evenly(u, s, vh, keep);
  return {core.down.mm(std::get<0>(down).t()), std::get<0>(up).mm(core.up)};
}

}  // namespace lightlora
