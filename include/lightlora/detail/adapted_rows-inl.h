// SPDX-License-Identifier: Apache-2.0
#pragma once

// A batch whose rows have different adapters: grouped products, without a loop over rows.
#include <lightlora/detail/interception.h>
#include <lightlora/detail/thin_products.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace lightlora {

namespace detail {

// Factors of every set, and of none: equal ranks, filled up with zeros, scales in `up_t`.
// Shapes: down (sets + 1, r, in), up_t (sets + 1, r, rows)
struct FactorsBySet {
  at::Tensor down, up_t;
};

inline FactorsBySet factors_by_set(const MatchedRows& part, int64_t in, at::ScalarType dtype) {
  const AdaptedSite& site = *part.site;
  int64_t rank = 1;
  std::vector<Factors> found;
  for (const auto& [adapter, weight] : site.active) {
    if (!adapter) {
      found.push_back({});
      continue;
    }
    Factors f = adapter->factors();
    f.up = f.up.narrow(0, part.first, part.count) * (adapter->scale() * weight);
    rank = std::max(rank, f.down.size(0));
    found.push_back(std::move(f));
  }
  found.push_back({});
  const auto options = site.tensor.options().dtype(dtype).requires_grad(false);
  std::vector<at::Tensor> downs, ups;
  for (const auto& f : found) {
    if (!f.down.defined()) {
      downs.push_back(at::zeros({rank, in}, options));
      ups.push_back(at::zeros({part.count, rank}, options));
      continue;
    }
    const int64_t missing = rank - f.down.size(0);
    downs.push_back(at::constant_pad_nd(f.down.to(dtype), {0, 0, 0, missing}));
    ups.push_back(at::constant_pad_nd(f.up.to(dtype), {0, missing}));
  }
  return {at::stack(downs), at::stack(ups).transpose(1, 2).contiguous()};
}

// The same, without gradients composed once and kept: many sets of small factors are many small
// operations.
inline FactorsBySet kept_factors_by_set(const MatchedRows& part, int64_t in, at::ScalarType dtype) {
  const AdaptedSite& site = *part.site;
  if (at::GradMode::is_enabled()) return factors_by_set(part, in, dtype);
  std::vector<double> numbers{static_cast<double>(part.first), static_cast<double>(part.count),
                              static_cast<double>(dtype)};
  for (const auto& item : site.active) {
    numbers.push_back(item.adapter ? item.adapter->scale() * item.weight : 0);
  }
  const auto made = site.kept->factors.get(site.sources, numbers, [&] {
    const FactorsBySet factors = factors_by_set(part, in, dtype);
    return std::vector<at::Tensor>{factors.down, factors.up_t};
  });
  return {made[0], made[1]};
}

// Which set each row has; the last one for none.
inline at::Tensor set_of_rows(const AdaptedSite& site, const at::Tensor& x) {
  const at::Tensor& index = site.rows->index;
  const auto sets = static_cast<int64_t>(site.active.size());
  TORCH_CHECK(x.dim() >= 1 && x.size(0) == index.size(0), "'", site.path, "': expected ",
              index.size(0), " rows first, one for each entry of the index, got x ", x.sizes(),
              "; hint: activate_rows takes the first dimension of every adapted layer's input as ",
              "the batch");
  const at::Tensor here = index.to(x.device());
  return at::where(here < 0, at::scalar_tensor(sets, here.options()), here);
}

// y plus, for each set, what `add(item, inputs)` gives for the rows of the batch that have it: one
// product for each set.
template <typename Add>
at::Tensor add_by_sets(const AdaptedSite& site, at::Tensor y, const at::Tensor& x, const Add& add) {
  const at::Tensor set = set_of_rows(site, x);
  for (std::size_t i = 0; i < site.active.size(); ++i) {
    if (!site.active[i].adapter) continue;
    const at::Tensor rows = (set == static_cast<int64_t>(i)).nonzero().flatten();
    if (rows.numel() == 0) continue;
    const at::Tensor added = add(site.active[i], x.index_select(0, rows));
    y = at::index_add(y, 0, rows, added.to(y.scalar_type()));
  }
  return y;
}

// Factors that were given, in the dtype of a call; one entry for each row of x, or one for all.
inline GivenFactors given_for(const AdaptedSite& site, const at::Tensor& x, at::ScalarType dtype) {
  const int64_t entries = site.given->down.size(0);
  TORCH_CHECK(
      entries == 1 || (x.dim() > 1 && x.size(0) == entries), "'", site.path, "': expected ",
      entries, " rows first, one for each entry of the values, got x ", x.sizes(),
      "; hint: activate_values takes the first dimension of every adapted layer's input as ",
      "the batch");
  return {site.given->down.to(dtype), site.given->up.to(dtype)};
}

// y = layer(x) + (x down^T) up^T.
inline at::Tensor linear_with_given(const at::Tensor& x, const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias,
                                    const MatchedRows& part) {
  const at::Tensor y = at::linear(x, weight, bias);
  const GivenFactors given = given_for(*part.site, x, y.scalar_type());
  const at::Tensor up = given.up.narrow(1, part.first, part.count);
  const at::Tensor narrow = x.to(y.scalar_type());
  if (given.down.size(0) == 1) {
    return at::add(y, at::linear(at::linear(narrow, given.down[0]), up[0]));
  }
  const at::Tensor tokens = narrow.reshape({x.size(0), -1, x.size(-1)});
  const at::Tensor hidden = tokens.bmm(given.down.transpose(1, 2));
  return at::add(y, hidden.bmm(up.transpose(1, 2)).reshape(y.sizes()));
}

// y = layer(x) + (x down^T) up^T with the factors of each row's own set: on a CPU with small ranks in
// one pass over x and y, otherwise in two batched products. One row of the batch has many rows of
// the matrix, so that gathering its factors is little beside reading it.
// Shapes: x (batch, ..., in), weight (out, in)
inline at::Tensor linear_by_rows(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias, const MatchedRows& part) {
  const AdaptedSite& site = *part.site;
  if (site.given) return linear_with_given(x, weight, bias, part);
  const at::Tensor y = at::linear(x, weight, bias);
  const bool with_factors = std::all_of(
      site.active.begin(), site.active.end(),
      [](const ActiveAdapter& item) { return !item.adapter || item.adapter->has_factors(); });
  if (!with_factors) {
    const at::Tensor matrix = site.weight.matrix();
    return add_by_sets(site, y, x, [&](const ActiveAdapter& item, const at::Tensor& rows) {
      const at::Tensor delta = item.adapter->delta(matrix) * item.weight;
      return at::linear(rows, delta.narrow(0, part.first, part.count).to(rows.scalar_type()));
    });
  }
  const at::Tensor set = set_of_rows(site, x);
  const at::Tensor tokens = x.reshape({x.size(0), -1, x.size(-1)}).to(y.scalar_type());
  // Kept in one dtype at a time, so that of half precision only what the kernels take is tried.
  const bool narrow = std::all_of(
      site.active.begin(), site.active.end(),
      [](const ActiveAdapter& item) { return !item.adapter || item.adapter->rank() <= 4; });
  const bool may_be_thin = y.scalar_type() == at::kFloat || narrow;
  if (may_be_thin && !at::GradMode::is_enabled() && y.is_contiguous()) {
    const FactorsBySet all = kept_factors_by_set(part, weight.size(1), at::kFloat);
    if (thin::usable(tokens, all.down[0], all.up_t[0].t())) {
      thin::add_low_rank_by_set_(y.view({x.size(0), -1, y.size(-1)}), tokens.contiguous(), set,
                                 all.down, all.up_t);
      return y;
    }
  }
  const FactorsBySet all = kept_factors_by_set(part, weight.size(1), y.scalar_type());
  const at::Tensor hidden = tokens.bmm(all.down.index_select(0, set).transpose(1, 2));
  return at::add(y, hidden.bmm(all.up_t.index_select(0, set)).reshape(y.sizes()));
}

}  // namespace detail

}  // namespace lightlora
