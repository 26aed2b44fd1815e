// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a product with an adapted matrix is: the layer's own, and what its adapters add.
#include <lightlora/detail/adapted_rows-inl.h>
#include <lightlora/detail/interception.h>
#include <lightlora/detail/low_rank_linear-inl.h>

#include <ATen/ATen.h>

namespace lightlora {

namespace detail {

// Whether a product of x with this weight would round small deltas away.
inline bool rounds_away(const at::Tensor& x, const at::Tensor& weight) {
  return at::isReducedFloatingType(weight.scalar_type()) || is_quantized(weight) ||
         autocast_dtype(x);
}

// One of TorchScript has no mode that could be asked in every call: there the adapters' counts
// alone.
inline bool is_dropping(const AdaptedSite& site) {
  return (!site.weight.layer() || site.weight.is_training()) && any_dropout(site.active);
}

// What every layer's choice depends on.
inline Situation situation_of(const AdaptedSite& site, const at::Tensor& x) {
  Situation s;
  s.training = site.weight.is_training();
  s.gradients = at::GradMode::is_enabled();
  s.half = rounds_away(x, site.tensor);
  s.dropping = is_dropping(site);
  s.factors = all_have_factors(site.active);
  return s;
}

// What a product with factors of this rank and dtype depends on beside that.
// Shapes: x (..., in), weight (out, in)
inline void add_product(Situation& s, const at::Tensor& x, const at::Tensor& weight, int64_t rank,
                        at::ScalarType factors) {
  s.in = weight.size(1);
  s.out = weight.size(0);
  s.rows = s.in > 0 ? x.numel() / s.in : 0;
  s.thin = thin::usable(x, rank, factors);
}

// Of the factors that `composed_factors` would give.
inline int64_t composed_rank(const AdaptedSite& site) {
  int64_t rank = 0;
  for (const auto& item : site.active) rank += item.adapter->rank();
  return rank;
}

inline std::vector<double> numbers_of(const AdaptedSite& site) {
  std::vector<double> numbers;
  for (const auto& [adapter, weight] : site.active) {
    numbers.push_back(adapter->scale());
    numbers.push_back(weight);
  }
  return numbers;
}

// weight + the sum of the deltas in the weight's own shape; differentiable.
inline at::Tensor summed_weight(const AdaptedSite& site) {
  return site.weight.plus(total_delta(site.active, site.weight.matrix()));
}

// The same, summed once and kept until a value changes. Unless it is to be had at once, undefined
// in the first call after a change, so that switching adapters costs no sum.
inline at::Tensor kept_weight(const AdaptedSite& site, bool at_once) {
  const auto make = [&] { return std::vector<at::Tensor>{summed_weight(site)}; };
  auto& cache = site.kept->merged;
  const auto numbers = numbers_of(site);
  const auto kept = at_once ? cache.get(site.sources, numbers, make)
                            : cache.get_if_repeated(site.sources, numbers, make);
  return kept.empty() ? at::Tensor() : kept[0];
}

// How one call is computed.
struct Choice {
  Path path;
  at::Tensor kept;  // the weight to compute with instead, on the path `kept_merged`
};

inline Choice choose(const AdaptedSite& site, const Situation& situation) {
  const Route route = site.state->route;
  const Path path = choose_path(situation, route);
  if (path != Path::kept_merged) {
    if (at::GradMode::is_enabled()) site.kept->merged.clear();
    return {path, {}};
  }
  const at::Tensor kept = kept_weight(site, /*at_once=*/route == Route::merged);
  if (kept.defined()) return {path, kept};
  // What evaluation does not keep yet is not worth a sum for one call either.
  return {choose_path(situation, Route::bypass), {}};
}

// Factors of all active adapters; without gradients composed once and kept.
inline std::pair<Factors, double> composed_factors(const AdaptedSite& site) {
  if (at::GradMode::is_enabled()) {
    site.kept->factors.clear();
    return total_factors(site.active);
  }
  const auto numbers = numbers_of(site);
  const double scale = site.active.size() == 1 ? numbers[0] * numbers[1] : 1.0;
  const auto made = site.kept->factors.get(site.sources, numbers, [&] {
    const Factors factors = total_factors(site.active).first;
    return std::vector<at::Tensor>{factors.down, factors.up};
  });
  return {{made[0], made[1]}, scale};
}

inline at::Tensor some_rows(const at::Tensor& matrix, const MatchedRows& part) {
  return part.count == matrix.size(0) ? matrix : matrix.narrow(0, part.first, part.count);
}

// Whether one adapter alone rotates its layer's inputs, its outputs (all of them), or both.
inline bool rotates(const MatchedRows& part) {
  const auto& active = part.site->active;
  if (active.size() != 1 || active[0].weight != 1.0) return false;
  const Adapter& adapter = *active[0].adapter;
  if (adapter.rotates_output()) return part.count == adapter.layer().out;
  return adapter.rotates_input();
}

// y = R_out (R_in x) weight^T + bias
inline at::Tensor rotated_linear(const Adapter& adapter, const at::Tensor& x,
                                 const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const at::Tensor seen = adapter.rotates_input() ? adapter.rotated(x) : x;
  const at::Tensor y = at::linear(seen, weight, bias);
  if (!adapter.rotates_output()) return y;
  // As a difference, so that no rotation changes no bit.
  const at::Tensor plain = bias ? y - *bias : y;
  return y + (adapter.rotated_output(plain) - plain);
}

// For what the low-rank route cannot carry: variants without factors, and dropout.
// y = x weight^T + bias + sum of share * adapter_input(x) delta^T
inline at::Tensor linear_by_parts(const at::Tensor& x, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias, const MatchedRows& part) {
  const AdaptedSite& site = *part.site;
  const at::Tensor matrix = site.weight.matrix();
  const bool dropping = is_dropping(site);
  if (!dropping && rotates(part)) {
    return rotated_linear(*site.active[0].adapter, x, weight, bias);
  }
  // One product with the sum, unless rounding the sum would swallow the delta.
  if (!dropping && !rounds_away(x, weight)) {
    const at::Tensor delta = some_rows(total_delta(site.active, matrix), part);
    return at::linear(x, (weight + delta).to(weight.scalar_type()), bias);
  }
  at::Tensor y = at::linear(x, weight, bias);
  for (const auto& item : site.active) {
    const at::Tensor seen = dropping ? adapter_input(item, x) : x;
    const auto cast = [&](const at::Tensor& t) { return t.to(x.scalar_type()); };
    if (item.adapter->has_factors()) {
      const Factors f = factors_of_call(item, dropping);
      const at::Tensor hidden = at::linear(seen, cast(f.down));
      y = at::add(y, at::linear(hidden, cast(some_rows(f.up, part))),
                  item.adapter->scale() * item.weight);
    } else {
      const at::Tensor delta = some_rows(delta_of_call(item, matrix, dropping), part);
      y = at::add(y, at::linear(seen, cast(delta)), item.weight);
    }
  }
  return y;
}

// A linear layer of some rows of one adapted weight.
inline at::Tensor linear_of_site(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias, const MatchedRows& part) {
  const AdaptedSite& site = *part.site;
  if (site.rows) return linear_by_rows(x, weight, bias, part);
  // What is packed is known by its tensor, of which the operator may have got a view.
  const bool whole = site.tensor.dim() == 2 && part.count == site.tensor.size(0);
  const PackedSite* packed = whole ? find_packed(site.tensor) : nullptr;
  Situation situation = situation_of(site, x);
  situation.packed = packed && !autocast_dtype(x) && PackedWeight::usable(x, packed->tensor, bias);
  add_product(situation, x, weight, composed_rank(site), site.sources.front().scalar_type());
  const Choice choice = choose(site, situation);
  if (choice.kept.defined()) return at::linear(x, some_rows(choice.kept.flatten(1), part), bias);
  if (choice.path == Path::by_parts) return linear_by_parts(x, weight, bias, part);
  auto [factors, scale] = composed_factors(site);
  factors.up = some_rows(factors.up, part);
  return low_rank_linear(x, packed ? packed->tensor : weight, bias, factors, scale, site.path,
                         choice.path, packed ? packed->packed.get() : nullptr);
}

// One set of factors for a matrix of several weights: down stacked, up block by block along the
// diagonal, with the scales in it. Shapes: down (sum of r, in), up (rows, sum of r)
inline Factors stacked_factors(const Match& match) {
  std::vector<at::Tensor> downs, ups;
  int64_t row = 0;
  const auto skip_to = [&](int64_t begin, const at::Tensor& like) {
    if (begin > row) ups.push_back(like.new_zeros({begin - row, 0}));
  };
  for (const auto& part : match.parts) {
    auto [factors, scale] = composed_factors(*part.site);
    skip_to(part.begin, factors.up);
    downs.push_back(factors.down);
    ups.push_back(some_rows(factors.up, part) * scale);
    row = part.begin + part.count;
  }
  skip_to(match.rows, ups.back());
  return {at::cat(downs, 0), at::block_diag(ups)};
}

// Whether one product with stacked factors can carry the whole matrix. Without gradients each
// weight may have kept its sum.
inline bool can_be_stacked(const Match& match) {
  if (!at::GradMode::is_enabled()) return false;
  const auto& first = *match.parts[0].site;
  for (const auto& part : match.parts) {
    const AdaptedSite& site = *part.site;
    if (site.rows || !all_have_factors(site.active) || is_dropping(site) ||
        site.state->route.load() != first.state->route.load()) {
      return false;
    }
  }
  return true;
}

// x weight^T + bias, where the weight is a matrix as `match` says.
inline at::Tensor adapted_linear(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias, const Match& match) {
  const auto& parts = match.parts;
  if (parts.size() == 1 && parts[0].count == match.rows) {
    return linear_of_site(x, weight, bias, parts[0]);
  }
  if (can_be_stacked(match)) {
    const Factors factors = stacked_factors(match);
    Situation situation;
    situation.half = rounds_away(x, weight);
    add_product(situation, x, weight, factors.down.size(0), factors.down.scalar_type());
    return low_rank_linear(x, weight, bias, factors, /*scale=*/1, parts[0].site->path,
                           choose_path(situation, parts[0].site->state->route));
  }
  std::vector<at::Tensor> columns;
  int64_t row = 0;
  const auto take = [&](int64_t count) {
    const auto own_bias = bias ? std::optional<at::Tensor>(bias->narrow(0, row, count)) : bias;
    return std::make_pair(weight.narrow(0, row, count), own_bias);
  };
  const auto add_plain = [&](int64_t end) {
    if (end <= row) return;
    const auto [own, own_bias] = take(end - row);
    columns.push_back(at::linear(x, own, own_bias));
    row = end;
  };
  for (const auto& part : parts) {
    add_plain(part.begin);
    const auto [own, own_bias] = take(part.count);
    columns.push_back(linear_of_site(x, own, own_bias, part));
    row += part.count;
  }
  add_plain(match.rows);
  return at::cat(columns, -1);
}

// x weight, where the weight (out, in) is a matrix as `match` says: its delta's transpose joins in.
// Shapes: x (..., out), result (..., in)
inline at::Tensor adapted_linear_t(const at::Tensor& x, const at::Tensor& weight,
                                   const Match& match) {
  at::Tensor y = at::matmul(x, weight);
  for (const auto& part : match.parts) {
    const AdaptedSite& site = *part.site;
    TORCH_CHECK(
        !site.rows, "'", site.path, "': adapters chosen for each row cannot be combined with ",
        "a product from the right, x W: its rows are the weight's outputs; hint: activate one ",
        "set at a time");
    const at::Tensor delta = some_rows(total_delta(site.active, site.weight.matrix()), part);
    const at::Tensor seen = x.narrow(-1, part.begin, part.count);
    y = at::add(y, at::matmul(seen, delta.to(x.scalar_type())));
  }
  return y;
}

}  // namespace detail

}  // namespace lightlora
