// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lightlora {

/// A low-rank weight delta without its scale: delta = scale * up * down.
/// Shapes: down (r, in), up (out, r)
struct Factors {
  at::Tensor down;  ///< (r, in)
  at::Tensor up;    ///< (out, r)
};

/// One set of factors for the sum of several: the ranks add up, the scales go into `up`.
/// Shapes: as in `Factors`, with r the sum of the ranks
inline Factors concatenate(const std::vector<Factors>& factors, const std::vector<double>& scales) {
  std::vector<at::Tensor> downs;
  std::vector<at::Tensor> ups;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    downs.push_back(factors[i].down);
    ups.push_back(factors[i].up * scales[i]);
  }
  return {at::cat(downs, 0), at::cat(ups, 1)};
}

namespace detail {

// Rows of all leading dimensions as one matrix; a view wherever the strides allow one.
inline at::Tensor as_rows(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

// What autocast would cast a product's arguments to on this device, or nothing.
inline std::optional<at::ScalarType> autocast_dtype(const at::Tensor& x) {
  const auto device = x.device().type();
  if (!at::autocast::is_autocast_enabled(device) || x.scalar_type() == at::kDouble) return {};
  return at::autocast::get_autocast_dtype(device);
}

// y = x W^T + b + s (x D^T) U^T, with nothing of size rows x features beyond x, y and dx.
// Written as one function because the composed form moves 6 NK + 10 NM elements more than the bare
// layer where this one moves 4 NK + 4 NM, and because its backward never forms the gradient of the
// frozen weight.
struct LowRankLinear : torch::autograd::Function<LowRankLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& down, const at::Tensor& up,
                            double scale, const std::optional<at::Tensor>& bias) {
    const at::Tensor rows = as_rows(x);
    // The small matrices follow the dtype of the rows: casting the rows up would cost a pass.
    const at::Tensor d = down.to(rows.scalar_type());
    const at::Tensor u = up.to(rows.scalar_type());
    at::Tensor y = at::linear(rows, weight, bias);
    const at::Tensor h = rows.mm(d.t());
    y.addmm_(h, u.t(), /*beta=*/1, /*alpha=*/scale);
    ctx->save_for_backward({rows, weight, d, u, h});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["factor_dtype"] = static_cast<int64_t>(down.scalar_type());
    ctx->saved_data["has_bias"] = bias.has_value();
    auto sizes = x.sizes().vec();
    ctx->saved_data["x_sizes"] = sizes;
    sizes.back() = weight.size(0);
    return y.reshape(sizes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &rows = saved[0], &weight = saved[1], &d = saved[2], &u = saved[3],
                     &h = saved[4];
    const double scale = ctx->saved_data["scale"].toDouble();
    const auto factor_dtype =
        static_cast<at::ScalarType>(ctx->saved_data["factor_dtype"].toInt());
    const at::Tensor dy = as_rows(grads[0]);
    const bool need_x = ctx->needs_input_grad(0);
    const bool need_down = ctx->needs_input_grad(2);
    at::Tensor g, dx, dw, dd, du, db;
    if (need_x || need_down) g = dy.mm(u);
    if (need_x) {
      dx = dy.mm(weight);
      dx.addmm_(g, d, /*beta=*/1, /*alpha=*/scale);
      dx = dx.reshape(ctx->saved_data["x_sizes"].toIntVector());
    }
    if (ctx->needs_input_grad(1)) dw = dy.t().mm(rows);
    if (need_down) dd = scaled_product(g.t(), rows, scale, factor_dtype);
    if (ctx->needs_input_grad(3)) du = scaled_product(dy.t(), h, scale, factor_dtype);
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(4)) db = dy.sum(0);
    return {dx, dw, dd, du, at::Tensor(), db};
  }

 private:
  static at::Tensor scaled_product(const at::Tensor& a, const at::Tensor& b, double scale,
                                   at::ScalarType dtype) {
    return at::addmm(at::empty({1, 1}, a.options()), a, b, /*beta=*/0, /*alpha=*/scale).to(dtype);
  }
};

}  // namespace detail

/// Linear layer with a low-rank delta, without ever forming the delta.
/// Equation: y = x (weight + scale * up * down)^T + bias
/// Shapes:   x (..., in), weight (out, in), down (r, in), up (out, r), bias (out), y (..., out)
/// Dtypes:   x, weight and bias of one floating dtype (or under autocast, which is honoured); the
///           factors may have a wider one and get their gradients in it
/// Errors:   c10::Error with both shapes, and `name` if given, if the last size of x is not `in`
inline at::Tensor low_rank_linear(const at::Tensor& x, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias, const Factors& factors,
                                  double scale, std::string_view name = "low_rank_linear") {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "lightlora: '", name,
              "': expected x (..., ", weight.size(1), "), got ", x.sizes());
  if (const auto dtype = detail::autocast_dtype(x)) {
    const auto cast_bias = bias ? std::optional<at::Tensor>(bias->to(*dtype)) : std::nullopt;
    return detail::LowRankLinear::apply(x.to(*dtype), weight.to(*dtype), factors.down, factors.up,
                                        scale, cast_bias);
  }
  return detail::LowRankLinear::apply(x, weight, factors.down, factors.up, scale, bias);
}

}  // namespace lightlora
