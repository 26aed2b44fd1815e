// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/low_rank.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <tuple>

namespace lightlora {

LIGHTLORA_INLINE Keep Keep::rank(int64_t rank) {
  TORCH_CHECK_VALUE(rank >= 1, "lightlora: expected rank >= 1, got ", rank);
  Keep keep;
  keep.rank_ = rank;
  return keep;
}

LIGHTLORA_INLINE Keep Keep::energy(double share) {
  TORCH_CHECK_VALUE(share > 0 && share <= 1, "lightlora: expected 0 < energy <= 1, got ", share);
  Keep keep;
  keep.energy_ = share;
  return keep;
}

LIGHTLORA_INLINE int64_t Keep::count(const at::Tensor& values) const {
  if (rank_) return std::min(*rank_, values.numel());
  const at::Tensor squares = values.to(at::kDouble).cpu().square().cumsum(0);
  const double total = squares.numel() > 0 ? squares[-1].item<double>() : 0.0;
  // What lies below rounding of the largest value is no rank.
  const double wanted = energy_ ? *energy_ * total : total * (1.0 - 1e-15);
  const auto below = (squares < wanted).sum().item<int64_t>();
  return std::clamp<int64_t>(below + 1, 1, values.numel());
}

namespace detail {

// U, S and V^T cut to what is kept, with sqrt(S) on either side so that neither underflows in fp16.
inline Factors split_evenly(const at::Tensor& u, const at::Tensor& s, const at::Tensor& vh,
                            const Keep& keep) {
  const int64_t rank = keep.count(s);
  const at::Tensor root = s.slice(0, 0, rank).sqrt();
  return {root.unsqueeze(1) * vh.slice(0, 0, rank), u.slice(1, 0, rank) * root};
}

}  // namespace detail

LIGHTLORA_INLINE Factors factorise(const at::Tensor& delta, const Keep& keep) {
  const auto [u, s, vh] = at::linalg_svd(delta.to(at::kDouble), /*full_matrices=*/false);
  return detail::split_evenly(u, s, vh, keep);
}

LIGHTLORA_INLINE Factors truncate(const Factors& factors, const Keep& keep) {
  const auto up = at::linalg_qr(factors.up.to(at::kDouble));
  const auto down = at::linalg_qr(factors.down.to(at::kDouble).t());
  const auto [u, s, vh] = at::linalg_svd(std::get<1>(up).mm(std::get<1>(down).t()),
                                         /*full_matrices=*/false);
  const Factors core = detail::split_evenly(u, s, vh, keep);
  return {core.down.mm(std::get<0>(down).t()), std::get<0>(up).mm(core.up)};
}

}  // namespace lightlora
