// SPDX-License-Identifier: Apache-2.0
#pragma once

// Layers that are no plain product: convolutions, embeddings, bilinear and recurrent layers. Their
// operators are called with the arguments that the layer gave, of which some are exchanged, so that
// padding, stride, dilation and groups need not be known here.
#include <lightlora/detail/adapted_linear-inl.h>
#include <lightlora/detail/interception.h>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace lightlora {

namespace detail {

using Arguments = std::vector<c10::IValue>;

// An argument that may be left out: by none, or by an undefined tensor.
inline std::optional<at::Tensor> optional_tensor(const c10::IValue& argument) {
  if (!argument.isTensor() || !argument.toTensor().defined()) return {};
  return argument.toTensor();
}

// An operator's only or first result.
inline at::Tensor call_operator(const c10::OperatorHandle& op, Arguments arguments) {
  torch::jit::Stack stack(std::move(arguments));
  op.callBoxed(&stack);
  return stack[0].toTensor();
}

// Calls of one convolution, of whichever operator, with the input, kernels and groups exchanged.
struct ConvolutionCall {
  const c10::OperatorHandle& op;
  const Arguments& arguments;
  std::size_t groups_at;
  bool transposed;

  const at::Tensor& x() const { return arguments[0].toTensor(); }
  int64_t groups() const { return arguments[groups_at].toInt(); }
  at::Tensor with(const at::Tensor& x, const at::Tensor& kernels, bool biased = false) const {
    Arguments own = arguments;
    own[0] = x;
    own[1] = kernels;
    if (!biased) own[2] = c10::IValue();
    return call_operator(op, std::move(own));
  }
};

inline at::Tensor call_conv1d(const at::Tensor& x, const at::Tensor& kernels, at::IntArrayRef one,
                              at::IntArrayRef none, int64_t groups) {
  return at::conv1d(x, kernels, {}, one, none, one, groups);
}
inline at::Tensor call_conv2d(const at::Tensor& x, const at::Tensor& kernels, at::IntArrayRef one,
                              at::IntArrayRef none, int64_t groups) {
  return at::conv2d(x, kernels, {}, one, none, one, groups);
}
inline at::Tensor call_conv3d(const at::Tensor& x, const at::Tensor& kernels, at::IntArrayRef one,
                              at::IntArrayRef none, int64_t groups) {
  return at::conv3d(x, kernels, {}, one, none, one, groups);
}

// A convolution with kernels of one pixel.
inline at::Tensor pointwise(const at::Tensor& x, const at::Tensor& matrix, int64_t dimensions,
                            int64_t groups) {
  auto sizes = matrix.sizes().vec();
  sizes.resize(static_cast<std::size_t>(2 + dimensions), 1);
  const at::Tensor kernels = matrix.reshape(sizes);
  const std::vector<int64_t> one(static_cast<std::size_t>(dimensions), 1);
  const std::vector<int64_t> none(static_cast<std::size_t>(dimensions), 0);
  const auto convolve = dimensions == 1 ? call_conv1d : dimensions == 2 ? call_conv2d : call_conv3d;
  return convolve(x, kernels, one, none, groups);
}

// What factors add to a convolution. Group g has inputs of its own, down in common and rows of up
// of its own: so down is repeated for each group and up is a pointwise convolution of as many
// groups. A transposed convolution is the same from the other end. Shapes: down (r, in / groups *
// kernel) and up (out, r); transposed: down (r, in) and up
//         (out / groups * kernel, r)
inline at::Tensor low_rank_convolution(const ConvolutionCall& call, const AdaptedSite& site,
                                       const at::Tensor& x, const Factors& factors) {
  const at::Tensor& weight = site.tensor;
  const int64_t rank = factors.down.size(0), groups = call.groups();
  const int64_t dimensions = weight.dim() - 2;
  const at::Tensor down = factors.down.to(x.scalar_type()), up = factors.up.to(x.scalar_type());
  auto kernel = weight.sizes().vec();
  kernel[0] = rank;
  std::vector<int64_t> repeats(kernel.size(), 1);
  repeats[0] = groups;
  const auto for_each_group = [&](const at::Tensor& kernels) {
    return groups == 1 ? kernels : kernels.repeat(repeats);
  };
  if (site.weight.kind() == LayerKind::convolution) {
    const at::Tensor hidden = call.with(x, for_each_group(down.reshape(kernel)));
    return pointwise(hidden, up, dimensions, groups);
  }
  const at::Tensor by_group = down.reshape({rank, groups, -1}).transpose(0, 1).flatten(0, 1);
  const at::Tensor hidden = pointwise(x, by_group, dimensions, groups);
  return call.with(hidden, for_each_group(up.t().reshape(kernel)));
}

// What given factors add: each group of each row is a group of one wide convolution.
// Shapes: x (rows, in, ...)
inline at::Tensor convolution_with_given(const ConvolutionCall& call, const AdaptedSite& site) {
  const at::Tensor& x = call.x();
  const int64_t dimensions = site.tensor.dim() - 2, groups = call.groups();
  TORCH_CHECK(x.dim() == site.tensor.dim(), "'", site.path, "': expected a batch, got x ",
              x.sizes(), "; hint: activate_values takes the first dimension as the batch");
  const auto [down, up] = given_for(site, x, x.scalar_type());
  if (down.size(0) == 1) return low_rank_convolution(call, site, x, {down[0], up[0]});
  const int64_t rows = x.size(0), rank = down.size(1);
  auto kernel = site.tensor.sizes().vec();
  kernel[0] = rows * groups * rank;
  Arguments own = call.arguments;
  own[0] = x.flatten(0, 1).unsqueeze(0);
  own[1] = down.unsqueeze(1).expand({rows, groups, rank, down.size(2)}).reshape(kernel);
  own[2] = c10::IValue();
  own[call.groups_at] = rows * groups;
  const at::Tensor hidden = call_operator(call.op, std::move(own));
  const at::Tensor y = pointwise(hidden, up.flatten(0, 1), dimensions, rows * groups);
  return y.squeeze(0).unflatten(0, {rows, -1});
}

// What one adapter adds, times its share.
inline at::Tensor convolution_of_adapter(const ConvolutionCall& call, const AdaptedSite& site,
                                         const at::Tensor& x, const ActiveAdapter& item,
                                         bool dropping) {
  if (item.adapter->has_factors()) {
    return low_rank_convolution(call, site, x, factors_of_call(item, dropping)) *
           (item.adapter->scale() * item.weight);
  }
  const at::Tensor delta = delta_of_call(item, site.weight.matrix(), dropping);
  const at::Tensor kernels = site.weight.shaped(delta);
  return call.with(x, kernels.to(x.scalar_type())) * item.weight;
}

// The packed kernels that a call can use, or null. Kernels of one pixel are a plain product, which
// packing slows.
inline const PackedSite* packed_kernels(const ConvolutionCall& call) {
  const at::Tensor &x = call.x(), &weight = call.arguments[1].toTensor();
  if (call.transposed || call.groups_at != 6 || weight.dim() != 4 || x.dim() != 4) return nullptr;
  if (call.groups() != 1 || weight.size(2) * weight.size(3) <= 1) return nullptr;
  const PackedSite* site = find_packed(weight);
  const bool usable = site && call.arguments[4].isIntList() && !autocast_dtype(x) &&
                      PackedWeight::usable(x, site->tensor, optional_tensor(call.arguments[2]));
  return usable ? site : nullptr;
}

inline at::Tensor base_convolution(const ConvolutionCall& call, const PackedSite* packed) {
  const at::Tensor &x = call.x(), &weight = call.arguments[1].toTensor();
  if (!packed) return call.with(x, weight, /*biased=*/true);
  const auto sizes = [&](std::size_t i) { return call.arguments[i].toIntVector(); };
  return packed_conv2d(x, packed->tensor, optional_tensor(call.arguments[2]), *packed->packed,
                       sizes(3), sizes(4), sizes(5));
}

inline at::Tensor adapted_convolution(const ConvolutionCall& call, const AdaptedSite& site) {
  const at::Tensor& x = call.x();
  if (site.given) {
    return at::add(base_convolution(call, packed_kernels(call)),
                   convolution_with_given(call, site));
  }
  if (site.rows) {
    return add_by_sets(site, base_convolution(call, packed_kernels(call)), x,
                       [&](const ActiveAdapter& item, const at::Tensor& rows) {
                         return convolution_of_adapter(call, site, rows, item, false);
                       });
  }
  const Situation situation = situation_of(site, x);
  const Choice choice = choose(site, situation);
  if (choice.kept.defined()) return call.with(x, choice.kept, /*biased=*/true);
  if (choice.path != Path::by_parts) {
    const auto [factors, scale] = composed_factors(site);
    return at::add(base_convolution(call, packed_kernels(call)),
                   low_rank_convolution(call, site, x, factors), scale);
  }
  if (!situation.dropping && !situation.half) {
    return call.with(x, summed_weight(site), /*biased=*/true);
  }
  at::Tensor y = base_convolution(call, packed_kernels(call));
  for (const auto& item : site.active) {
    const at::Tensor seen = situation.dropping ? adapter_input(item, x) : x;
    y = at::add(y, convolution_of_adapter(call, site, seen, item, situation.dropping));
  }
  return y;
}

// A factor for each number that is looked up: 0 for the padding row, which stays as it is, and for
// what the adapter's dropout leaves out.
inline std::optional<at::Tensor> lookup_mask(const ActiveAdapter& item, const AdaptedSite& site,
                                             const at::Tensor& numbers, int64_t padding_idx,
                                             bool dropping) {
  std::optional<at::Tensor> mask;
  const auto options = site.tensor.options().dtype(at::kFloat).requires_grad(false);
  if (padding_idx >= 0) mask = numbers.ne(padding_idx).to(at::kFloat);
  if (dropping) mask = adapter_input(item, mask ? *mask : at::ones(numbers.sizes(), options));
  return mask;
}

// What one adapter adds to the rows of an embedding. The gradient of down is dense, whatever that
// of the table would be: optimisers of adapters expect it so.
inline at::Tensor lookup_of_adapter(const AdaptedSite& site, const at::Tensor& numbers,
                                    const ActiveAdapter& item, int64_t padding_idx, bool by_freq,
                                    bool dropping) {
  const auto rows_of = [&](const at::Tensor& table) {
    return at::embedding(table, numbers, padding_idx, by_freq, /*sparse=*/false);
  };
  at::Tensor rows;
  double share = item.weight;
  if (item.adapter->has_factors()) {
    const Factors f = factors_of_call(item, dropping);
    rows = at::matmul(rows_of(f.down.t()), f.up.t());
    share *= item.adapter->scale();
  } else {
    rows = rows_of(delta_of_call(item, site.weight.matrix(), dropping).t());
  }
  const auto mask = lookup_mask(item, site, numbers, padding_idx, dropping);
  if (mask) rows = rows * mask->unsqueeze(-1).to(rows.scalar_type());
  return rows * share;
}

inline at::Tensor adapted_lookup(const AdaptedSite& site, const at::Tensor& rows,
                                 const at::Tensor& numbers, int64_t padding_idx, bool by_freq) {
  // A negative index means none to the operator; the layer's own is what merging leaves alone too.
  const int64_t padding = padding_idx >= 0 ? padding_idx : site.weight.padding_idx();
  if (site.rows) {
    return add_by_sets(site, rows, numbers, [&](const ActiveAdapter& item, const at::Tensor& some) {
      return lookup_of_adapter(site, some, item, padding, by_freq, false);
    });
  }
  // Summed in the wider dtype and rounded once: rows and deltas may cancel, as DoRA's do.
  at::Tensor result = rows;
  for (const auto& item : site.active) {
    result = at::add(result,
                     lookup_of_adapter(site, numbers, item, padding, by_freq, is_dropping(site)));
  }
  return result.to(rows.scalar_type());
}

// The rows of one bag's table that are summed, each as an entry of a table of its own: what a
// dropout leaves out is zero there.
inline at::Tensor dropped_bags(const c10::OperatorHandle& op, Arguments arguments,
                               const at::Tensor& table, const AdaptedSite& site,
                               const ActiveAdapter& item) {
  const at::Tensor numbers = arguments[1].toTensor();
  const int64_t count = numbers.numel();
  const auto mask = lookup_mask(item, site, numbers.flatten(), -1, /*dropping=*/true);
  const at::Tensor rows = table.index_select(0, numbers.flatten().to(at::kLong)) *
                          mask->unsqueeze(-1).to(table.scalar_type());
  at::Tensor own = at::arange(count, numbers.options()).view_as(numbers);
  const bool pads = arguments.size() > 8 && !arguments[8].isNone();
  if (pads) {
    own = at::where(numbers.eq(arguments[8].toInt()), at::scalar_tensor(count, own.options()), own);
    arguments[8] = count;
  }
  arguments[0] = at::cat({rows, rows.new_zeros({1, rows.size(1)})});
  arguments[1] = own;
  return call_operator(op, std::move(arguments));
}

// Whether the sum of table and deltas is what to take bags of: maxima are not linear in the table,
// and without factors the delta is as large as the table anyway.
inline bool sums_tables(const AdaptedSite& site, int64_t mode) {
  constexpr int64_t kMaximum = 2;
  return mode == kMaximum || (!all_have_factors(site.active) && !is_dropping(site));
}

// The table that bags are then taken of, in the wider dtype.
inline void exchange_table(Arguments& arguments, const AdaptedSite& site) {
  const at::Tensor delta = total_delta(site.active, site.weight.matrix()).t();
  const at::Tensor table = site.tensor + delta;
  arguments[0] = table;
  arguments[5] = false;  // a dense gradient
  if (const auto shares = optional_tensor(arguments[6])) {
    arguments[6] = shares->to(table.scalar_type());
  }
}

// Sums and means of rows are linear in the table.
inline at::Tensor adapted_bags(const c10::OperatorHandle& op, const Arguments& arguments,
                               const AdaptedSite& site, const at::Tensor& base) {
  at::Tensor result = base;
  for (const auto& item : site.active) {
    Arguments own = arguments;
    own[5] = false;  // a dense gradient
    at::Tensor table, up;
    double share = item.weight;
    if (item.adapter->has_factors()) {
      const Factors f = factors_of_call(item, is_dropping(site));
      table = f.down.t().contiguous();
      up = f.up;
      share *= item.adapter->scale();
    } else {
      table = delta_of_call(item, site.weight.matrix(), is_dropping(site)).t().contiguous();
    }
    if (const auto shares = optional_tensor(own[6])) own[6] = shares->to(table.scalar_type());
    own[0] = table;
    at::Tensor bags = is_dropping(site) ? dropped_bags(op, own, table, site, item)
                                        : call_operator(op, std::move(own));
    if (up.defined()) bags = bags.matmul(up.t());
    result = at::add(result, bags * share);
  }
  return result.to(base.scalar_type());
}

inline at::Tensor adapted_bilinear(const at::Tensor& x1, const at::Tensor& x2,
                                   const AdaptedSite& site, at::Tensor y) {
  const auto cast = [&](const at::Tensor& t) { return t.to(x1.scalar_type()); };
  for (const auto& item : site.active) {
    const at::Tensor seen = is_dropping(site) ? adapter_input(item, x1) : x1;
    double share = item.weight;
    at::Tensor added;
    if (item.adapter->has_factors()) {
      const Factors f = factors_of_call(item, is_dropping(site));
      const auto kernels = f.down.reshape({-1, site.tensor.size(1), site.tensor.size(2)});
      added = at::linear(at::bilinear(seen, x2, cast(kernels), {}), cast(f.up));
      share *= item.adapter->scale();
    } else {
      const at::Tensor delta = delta_of_call(item, site.weight.matrix(), is_dropping(site));
      added = at::bilinear(seen, x2, cast(site.weight.shaped(delta)), {});
    }
    y = at::add(y, added, share);
  }
  return y;
}

// The adapted vector that a bias is, or null.
inline const AdaptedSite* match_vector(const std::optional<at::Tensor>& bias) {
  return bias && bias->defined() ? match_whole(*bias, LayerKind::vector) : nullptr;
}

inline at::Tensor delta_of_vector(const AdaptedSite& site) {
  return total_delta(site.active, site.weight.matrix()).flatten();
}

// A layer's output with what its adapted bias adds; behind the channels come so many dimensions. A
// sum of its own, because products take a bias to be frozen.
inline at::Tensor plus_bias_delta(const at::Tensor& y, const AdaptedSite& site,
                                  int64_t dimensions_behind) {
  std::vector<int64_t> sizes(static_cast<std::size_t>(1 + dimensions_behind), 1);
  sizes[0] = site.tensor.numel();
  return at::add(y, delta_of_vector(site).view(sizes).to(y.scalar_type()));
}

// The arguments of a norm with deltas in its vectors, all in fp32 where the layer is in half
// precision, which would round the deltas away; false if none is adapted.
inline bool exchange_vectors(Arguments& arguments) {
  bool any = false;
  std::vector<const AdaptedSite*> sites;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    sites.push_back(i == 0 ? nullptr : match_vector(optional_tensor(arguments[i])));
    any = any || sites.back();
  }
  if (!any) return false;
  const bool half = at::isReducedFloatingType(arguments[0].toTensor().scalar_type());
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto tensor = optional_tensor(arguments[i]);
    if (!tensor) continue;
    const at::Tensor wide = half ? tensor->to(at::kFloat) : *tensor;
    arguments[i] = sites[i] ? wide + delta_of_vector(*sites[i]) : wide;
  }
  return true;
}

// For operators that take weights as a list or do several layers at once: weight + delta in place
// of the weight. Errors: c10::Error when a half-precision weight would be trained through
inline at::Tensor exchanged_weight(const at::Tensor& weight) {
  const AdaptedSite* site = match_whole(weight, LayerKind::recurrent);
  if (!site) site = match_whole(weight, LayerKind::linear);
  if (!site) site = match_whole(weight, LayerKind::vector);
  if (!site) return weight;
  TORCH_CHECK(!site->rows, "'", site->path,
              "': adapters chosen for each row cannot be combined with ", site->weight.type(),
              " in this call: it takes one weight for all rows; hint: activate ",
              "one set at a time");
  const bool gradients = at::GradMode::is_enabled();
  TORCH_CHECK(!gradients || !at::isReducedFloatingType(weight.scalar_type()), "'", site->path,
              "': expected an fp32 weight for training through ", site->weight.type(), ", got ",
              weight.scalar_type(), "; hint: keep this layer in fp32");
  if (gradients) return summed_weight(*site);
  const at::Tensor kept = kept_weight(*site, /*at_once=*/true);
  return kept;
}

inline c10::IValue exchanged(const c10::IValue& argument) {
  if (argument.isTensor() && argument.toTensor().defined()) {
    return exchanged_weight(argument.toTensor());
  }
  if (!argument.isTensorList()) return argument;
  c10::List<at::Tensor> list;
  for (const at::Tensor& item : argument.toTensorVector()) list.push_back(exchanged_weight(item));
  return list;
}

}  // namespace detail

}  // namespace lightlora
