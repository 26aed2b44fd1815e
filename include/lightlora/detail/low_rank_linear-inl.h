// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/low_rank_linear.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <lightlora/detail/thin_products.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace lightlora {

LIGHTLORA_INLINE Route choose_route(int64_t rows, const at::Tensor& weight, bool thin_kernels) {
  if (at::isReducedFloatingType(weight.scalar_type())) return Route::bypass;
  const auto out = static_cast<double>(weight.size(0));
  const auto in = static_cast<double>(weight.size(1));
  const double kappa = thin_kernels ? 6.0 : 2.0;
  const bool merge = static_cast<double>(rows) * (in + out) > kappa * in * out;
  return merge ? Route::merged : Route::bypass;
}

namespace detail {

// Rows of all leading dimensions as one matrix; a view wherever the strides allow one.
inline at::Tensor as_rows(const at::Tensor& x) {
  return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)});
}

// What autocast would cast a product's arguments to on this device, or nothing.
inline std::optional<at::ScalarType> autocast_dtype(const at::Tensor& x) {
  const auto device = x.device().type();
  if (!at::autocast::is_autocast_enabled(device) || x.scalar_type() == at::kDouble) return {};
  return at::autocast::get_autocast_dtype(device);
}

// weight + scale * up * down, summed in the factors' dtype and rounded once to the weight's.
inline at::Tensor merged_weight(const at::Tensor& weight, const at::Tensor& down,
                                const at::Tensor& up, double scale) {
  const auto wide = at::promote_types(weight.scalar_type(), down.scalar_type());
  return at::addmm(weight.to(wide), up.to(wide), down.to(wide), /*beta=*/1, /*alpha=*/scale)
      .to(weight.scalar_type());
}

// y = x W^T + b + s (x D^T) U^T as one function of autograd. The composed form keeps and moves
// more matrices of rows x features, and autograd over W + s U D would form the gradient of the
// frozen weight, half of the bare layer's work once more. On a CPU with small ranks nothing is kept
// but the arguments: h = x D^T is made again in the backward's only pass over x. Elsewhere h (N, r)
// is kept.
struct LowRankLinear : torch::autograd::Function<LowRankLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& down, const at::Tensor& up,
                            double scale, int64_t wanted_route,
                            const std::optional<at::Tensor>& bias, const PackedWeight* packed) {
    at::Tensor rows = as_rows(x);
    const bool thin = thin::usable(rows, down, up);
    auto route = static_cast<Route>(wanted_route);
    if (route == Route::automatic) {
      // A weight that is merged anew in each step cannot be packed once.
      route = packed ? Route::bypass : choose_route(rows.size(0), weight, thin);
    }
    const bool merge = route == Route::merged;
    at::Tensor y = base_product(rows, weight, down, up, scale, merge, bias, packed);
    at::Tensor h;
    if (thin) {
      rows = thin::dense_rows(rows);
      if (!merge) thin::add_low_rank_(y, rows, down, up, scale);
    } else {
      // The small matrices follow the dtype of the rows: casting the rows up would cost a pass.
      if (!merge || up.requires_grad()) h = rows.mm(down.to(rows.scalar_type()).t());
      if (!merge) y.addmm_(h, up.to(rows.scalar_type()).t(), /*beta=*/1, /*alpha=*/scale);
    }
    ctx->save_for_backward({rows, weight, down, up, h});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["merge"] = merge;
    ctx->saved_data["thin"] = thin;
    ctx->saved_data["has_bias"] = bias.has_value();
    if (packed && !merge && x.requires_grad()) {
      ctx->saved_data["packed_t"] = packed->linear_weight_t(weight);
    }
    auto sizes = x.sizes().vec();
    ctx->saved_data["x_sizes"] = sizes;
    sizes.back() = weight.size(0);
    return y.reshape(sizes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &rows = saved[0], &weight = saved[1], &down = saved[2], &up = saved[3];
    const bool merge = ctx->saved_data["merge"].toBool();
    at::Tensor dy = as_rows(grads[0]);
    at::Tensor dx, dw, db;
    if (ctx->needs_input_grad(0)) dx = base_gradient(*ctx, dy, weight, down, up, merge);
    const at::Tensor bypassed_dx = merge ? at::Tensor() : dx;
    const auto factors = ctx->saved_data["thin"].toBool()
                             ? thin_backward(*ctx, rows, dy, bypassed_dx, down, up)
                             : backward(*ctx, rows, dy, bypassed_dx, saved[4], down, up);
    if (ctx->needs_input_grad(1)) dw = dy.t().mm(rows);
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(4)) db = dy.sum(0);
    if (dx.defined()) dx = dx.reshape(ctx->saved_data["x_sizes"].toIntVector());
    return {dx, dw, factors.first, factors.second, at::Tensor(), at::Tensor(), db, at::Tensor()};
  }

 private:
  static at::Tensor base_product(const at::Tensor& rows, const at::Tensor& weight,
                                 const at::Tensor& down, const at::Tensor& up, double scale,
                                 bool merge, const std::optional<at::Tensor>& bias,
                                 const PackedWeight* packed) {
    if (merge) return at::linear(rows, merged_weight(weight, down, up, scale), bias);
    if (packed) return PackedWeight::linear(rows, packed->linear_weight(weight), bias);
    return at::linear(rows, weight, bias);
  }

  static at::Tensor base_gradient(torch::autograd::AutogradContext& ctx, const at::Tensor& dy,
                                  const at::Tensor& weight, const at::Tensor& down,
                                  const at::Tensor& up, bool merge) {
    const auto found = ctx.saved_data.find("packed_t");
    if (found != ctx.saved_data.end()) return PackedWeight::linear(dy, found->second.toTensor());
    if (!merge) return dy.mm(weight);
    return dy.mm(merged_weight(weight, down, up, ctx.saved_data["scale"].toDouble()));
  }

  // The gradients of both factors; adds the low-rank part to dx, if that is defined.
  static std::pair<at::Tensor, at::Tensor> thin_backward(torch::autograd::AutogradContext& ctx,
                                                         const at::Tensor& rows,
                                                         const at::Tensor& dy, const at::Tensor& dx,
                                                         const at::Tensor& down,
                                                         const at::Tensor& up) {
    return thin::low_rank_gradients(rows, thin::dense_rows(dy), dx, down, up,
                                    ctx.saved_data["scale"].toDouble(), ctx.needs_input_grad(2),
                                    ctx.needs_input_grad(3));
  }

  static std::pair<at::Tensor, at::Tensor> backward(torch::autograd::AutogradContext& ctx,
                                                    const at::Tensor& rows, const at::Tensor& dy,
                                                    const at::Tensor& dx, const at::Tensor& h,
                                                    const at::Tensor& down, const at::Tensor& up) {
    const double scale = ctx.saved_data["scale"].toDouble();
    const auto dtype = rows.scalar_type();
    at::Tensor g, grad_down, grad_up;
    if (dx.defined() || ctx.needs_input_grad(2)) g = dy.mm(up.to(dtype));
    if (dx.defined()) dx.addmm_(g, down.to(dtype), /*beta=*/1, /*alpha=*/scale);
    if (ctx.needs_input_grad(2)) {
      grad_down = scaled_product(g.t(), rows, scale).to(down.scalar_type());
    }
    // As (h^T dy)^T: with many rows twice as fast on a CPU as dy^T h, whose result is the thin one.
    if (ctx.needs_input_grad(3)) {
      grad_up = scaled_product(h.t(), dy, scale).t().contiguous().to(up.scalar_type());
    }
    return {grad_down, grad_up};
  }

  static at::Tensor scaled_product(const at::Tensor& a, const at::Tensor& b, double scale) {
    return at::addmm(at::empty({1, 1}, a.options()), a, b, /*beta=*/0, /*alpha=*/scale);
  }
};

}  // namespace detail

LIGHTLORA_INLINE at::Tensor low_rank_linear(const at::Tensor& x, const at::Tensor& weight,
                                            const std::optional<at::Tensor>& bias,
                                            const Factors& factors, double scale,
                                            std::string_view name, Route route,
                                            const PackedWeight* packed) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "lightlora: '", name,
              "': expected x (..., ", weight.size(1), "), got ", x.sizes());
  const auto wanted = static_cast<int64_t>(route);
  if (const auto dtype = detail::autocast_dtype(x)) {
    const auto cast_bias = bias ? std::optional<at::Tensor>(bias->to(*dtype)) : std::nullopt;
    const PackedWeight* none = nullptr;
    return detail::LowRankLinear::apply(x.to(*dtype), weight.to(*dtype), factors.down, factors.up,
                                        scale, wanted, cast_bias, none);
  }
  if (packed && !PackedWeight::usable(x, weight, bias)) packed = nullptr;
  return detail::LowRankLinear::apply(x, weight, factors.down, factors.up, scale, wanted, bias,
                                      packed);
}

}  // namespace lightlora
