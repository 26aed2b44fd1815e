// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/low_rank_linear.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <lightlora/detail/quantised_weight.h>
#include <lightlora/detail/thin_products.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace lightlora {

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

// One call, as forward and backward both see it.
struct LowRankCall {
  double scale = 1;
  bool merge = false;  // one product with weight + delta
  bool thin = false;   // the CPU kernels for small ranks
};

// y (N, out) of rows (N, in). `h` gets x down^T if that product is made.
inline at::Tensor low_rank_forward(const at::Tensor& rows, const at::Tensor& weight,
                                   const at::Tensor& down, const at::Tensor& up,
                                   const std::optional<at::Tensor>& bias, const LowRankCall& call,
                                   const PackedWeight* packed, bool wants_h, at::Tensor& h) {
  const at::Tensor y = call.merge
                           ? at::linear(rows, merged_weight(weight, down, up, call.scale), bias)
                       : packed ? PackedWeight::linear(rows, packed->linear_weight(weight), bias)
                                : at::linear(rows, weight, bias);
  if (call.thin) {
    if (!call.merge) thin::add_low_rank_(y, thin::dense_rows(rows), down, up, call.scale);
    return y;
  }
  // The small matrices follow the dtype of the rows: casting the rows up would cost a pass.
  if (!call.merge || wants_h) h = rows.mm(down.to(rows.scalar_type()).t());
  if (!call.merge) y.addmm_(h, up.to(rows.scalar_type()).t(), /*beta=*/1, /*alpha=*/call.scale);
  return y;
}

// y = x W^T + b + s (x D^T) U^T as one function of autograd. The composed form keeps and moves
// more matrices of rows x features, and autograd over W + s U D would form the gradient of the
// frozen weight, half of the bare layer's work once more. On a CPU with small ranks nothing is kept
// but the arguments: h = x D^T is made again in the backward's only pass over x. Elsewhere h (N, r)
// is kept.
struct LowRankLinear : torch::autograd::Function<LowRankLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& down, const at::Tensor& up,
                            double scale, bool merge, const std::optional<at::Tensor>& bias,
                            const PackedWeight* packed) {
    const at::Tensor rows = as_rows(x);
    const LowRankCall call{scale, merge, thin::usable(rows, down, up)};
    at::Tensor h;
    const at::Tensor y = low_rank_forward(rows, weight, down, up, bias, call, packed,
                                          /*wants_h=*/up.requires_grad(), h);
    ctx->save_for_backward({x, weight, down, up, h});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["merge"] = call.merge;
    ctx->saved_data["thin"] = call.thin;
    ctx->saved_data["has_bias"] = bias.has_value();
    if (packed && !call.merge && x.requires_grad()) {
      ctx->saved_data["packed_t"] = packed->linear_weight_t(weight);
    }
    auto sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    // No view for autograd, which would forbid in-place operations on the result.
    return at::_unsafe_view(y, sizes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    if (at::GradMode::is_enabled()) return recorded_backward(*ctx, saved, grads[0]);
    const at::Tensor &weight = saved[1], &down = saved[2], &up = saved[3];
    at::Tensor rows = as_rows(saved[0]);
    const LowRankCall call{ctx->saved_data["scale"].toDouble(), ctx->saved_data["merge"].toBool(),
                           ctx->saved_data["thin"].toBool()};
    const at::Tensor dy = as_rows(grads[0]);
    at::Tensor dx, dw, db;
    if (ctx->needs_input_grad(0)) dx = base_gradient(*ctx, dy, weight, down, up, call);
    const at::Tensor bypassed_dx = call.merge ? at::Tensor() : dx;
    const auto factors =
        call.thin ? thin::low_rank_gradients(thin::dense_rows(rows), thin::dense_rows(dy),
                                             bypassed_dx, down, up, call.scale,
                                             ctx->needs_input_grad(2), ctx->needs_input_grad(3))
                  : gradients(*ctx, rows, dy, bypassed_dx, saved[4], down, up, call.scale);
    if (ctx->needs_input_grad(1)) dw = dy.t().mm(rows);
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(4)) db = dy.sum(0);
    if (dx.defined()) dx = dx.reshape(saved[0].sizes());
    return {dx, dw, factors.first, factors.second, at::Tensor(), at::Tensor(), db, at::Tensor()};
  }

 private:
  // The same of operators that autograd knows, of the arguments alone: what is computed here may be
  // differentiated again.
  static torch::autograd::variable_list recorded_backward(
      torch::autograd::AutogradContext& ctx, const torch::autograd::variable_list& saved,
      const at::Tensor& grad) {
    const at::Tensor &x = saved[0], &weight = saved[1];
    const double scale = ctx.saved_data["scale"].toDouble();
    const at::Tensor rows = as_rows(x), dy = as_rows(grad);
    const at::Tensor down = saved[2].to(rows.scalar_type()), up = saved[3].to(rows.scalar_type());
    const at::Tensor g = dy.mm(up) * scale;
    at::Tensor dx, dw, grad_down, grad_up, db;
    if (ctx.needs_input_grad(0)) dx = (dy.mm(weight) + g.mm(down)).reshape(x.sizes());
    if (ctx.needs_input_grad(1)) dw = dy.t().mm(rows);
    if (ctx.needs_input_grad(2)) grad_down = g.t().mm(rows).to(saved[2].scalar_type());
    if (ctx.needs_input_grad(3)) {
      grad_up = (dy.t().mm(rows.mm(down.t())) * scale).to(saved[3].scalar_type());
    }
    if (ctx.saved_data["has_bias"].toBool() && ctx.needs_input_grad(4)) db = dy.sum(0);
    return {dx, dw, grad_down, grad_up, at::Tensor(), at::Tensor(), db, at::Tensor()};
  }

  static at::Tensor base_gradient(torch::autograd::AutogradContext& ctx, const at::Tensor& dy,
                                  const at::Tensor& weight, const at::Tensor& down,
                                  const at::Tensor& up, const LowRankCall& call) {
    const auto found = ctx.saved_data.find("packed_t");
    if (found != ctx.saved_data.end()) return PackedWeight::linear(dy, found->second.toTensor());
    return dy.mm(call.merge ? merged_weight(weight, down, up, call.scale) : weight);
  }

  // The gradients of both factors; adds the low-rank part to dx, if that is defined.
  static std::pair<at::Tensor, at::Tensor> gradients(torch::autograd::AutogradContext& ctx,
                                                     const at::Tensor& rows, const at::Tensor& dy,
                                                     const at::Tensor& dx, const at::Tensor& h,
                                                     const at::Tensor& down, const at::Tensor& up,
                                                     double scale) {
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

// Without autograd nothing need be kept.
inline at::Tensor low_rank_product(const at::Tensor& x, const at::Tensor& weight,
                                   const std::optional<at::Tensor>& bias, const Factors& factors,
                                   double scale, bool merge, const PackedWeight* packed) {
  const auto differentiates = [](const at::Tensor& t) { return t.requires_grad(); };
  if (at::GradMode::is_enabled() &&
      (differentiates(x) || differentiates(weight) || differentiates(factors.down) ||
       differentiates(factors.up) || (bias && differentiates(*bias)))) {
    return LowRankLinear::apply(x, weight, factors.down, factors.up, scale, merge, bias, packed);
  }
  const at::Tensor rows = as_rows(x);
  const LowRankCall call{scale, merge, thin::usable(rows, factors.down, factors.up)};
  at::Tensor h;
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return at::_unsafe_view(low_rank_forward(rows, weight, factors.down, factors.up, bias, call,
                                           packed, /*wants_h=*/false, h),
                          sizes);
}

}  // namespace detail

LIGHTLORA_INLINE at::Tensor low_rank_linear(const at::Tensor& x, const at::Tensor& weight,
                                            const std::optional<at::Tensor>& bias,
                                            const Factors& factors, double scale,
                                            std::string_view name, Path path,
                                            const PackedWeight* packed) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "'", name, "': expected x (..., ",
              weight.size(1), "), got ", x.sizes());
  const bool merge = path == Path::merged;
  if (const auto dtype = detail::autocast_dtype(x)) {
    const auto cast_bias = bias ? std::optional<at::Tensor>(bias->to(*dtype)) : std::nullopt;
    const at::Tensor cast_weight = is_quantized(weight) ? weight : weight.to(*dtype);
    return detail::low_rank_product(x.to(*dtype), cast_weight, cast_bias, factors, scale, merge,
                                    nullptr);
  }
  return detail::low_rank_product(x, weight, bias, factors, scale, merge,
                                  path == Path::packed ? packed : nullptr);
}

}  // namespace lightlora
