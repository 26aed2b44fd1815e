// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_norm_silu.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <lightlora/patch.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "kernels/group_norm_kernels.h"

namespace sd {
namespace {

using torch::autograd::variable_list;

// What a GroupNorm does, and what is kept of it for the gradient.
struct NormCall {
  at::Tensor weight, bias;  // (C), in their own dtype
  int64_t groups;
  double eps;
  bool activates;
};

at::Tensor norm_of_operators(const NormCall& call, const at::Tensor& x) {
  // As in lightlora: LibTorch's gradient for channels last writes that of x, also where there is none.
  const bool writes_none = x.is_cpu() && !x.requires_grad() && call.weight.requires_grad();
  const at::Tensor y = at::group_norm(writes_none ? x.contiguous() : x, call.groups, call.weight,
                                      call.bias, call.eps);
  if (!call.activates) return y;
  return y.requires_grad() ? at::silu(y) : at::silu_(const_cast<at::Tensor&>(y));
}

#if SD_VECTORS

passes::NormSizes sizes_of_norm(const NormCall& call, const at::Tensor& x) {
  return {x.size(0), x.size(1), call.groups, x.size(2) * x.size(3), call.eps, call.activates};
}

bool has_rows(const at::Tensor& x) {
  return x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

at::Tensor as_floats(const at::Tensor& x) { return x.detach().to(at::kFloat).contiguous(); }

// A factor and a summand for each channel of each picture, (B, C).
struct ChannelTables {
  at::Tensor scale, shift;
};

ChannelTables tables_of(const NormCall& call, const passes::NormSizes& sizes,
                        const at::Tensor& mean, const at::Tensor& rstd) {
  const auto of_channels = [&](const at::Tensor& of_groups) {
    return of_groups.repeat_interleave(sizes.width(), /*dim=*/1);
  };
  const at::Tensor scale = of_channels(rstd) * as_floats(call.weight);
  return {scale, at::addcmul(as_floats(call.bias), of_channels(mean), scale, -1)};
}

// Means and inverse deviations (B, G) from those of parts of channels (B, parts, C).
void finish_moments(const passes::NormSizes& sizes, const at::Tensor& means,
                    const at::Tensor& squares, const at::Tensor& mean, const at::Tensor& rstd) {
  const int64_t width = sizes.width(), parts = sizes.parts();
  const double count = static_cast<double>(sizes.pixels * width);
  const auto* const m = means.const_data_ptr<double>();
  const auto* const q = squares.const_data_ptr<double>();
  const auto pixels = [&](int64_t part) {
    return static_cast<double>(sizes.begin_of(part + 1) - sizes.begin_of(part));
  };
  for (int64_t item = 0; item < sizes.batch * sizes.groups; ++item) {
    const int64_t first =
        item / sizes.groups * parts * sizes.channels + item % sizes.groups * width;
    double sum = 0, deviations = 0;
    for (int64_t part = 0; part < parts; ++part) {
      double own = 0;
      for (int64_t k = 0; k < width; ++k) own += m[first + part * sizes.channels + k];
      sum += own * pixels(part);
    }
    const double center = sum / count;
    for (int64_t part = 0; part < parts; ++part) {
      double own = 0;
      for (int64_t k = 0; k < width; ++k) {
        const int64_t at = first + part * sizes.channels + k;
        own += (m[at] - center) * (m[at] - center);
        deviations += q[at];
      }
      deviations += own * pixels(part);
    }
    mean.mutable_data_ptr<float>()[item] = static_cast<float>(center);
    rstd.mutable_data_ptr<float>()[item] =
        static_cast<float>(1.0 / std::sqrt(deviations / count + sizes.eps));
  }
}

// Fills mean and rstd (B, G), and y, which may be x.
void norm_pass(const NormCall& call, const at::Tensor& x, const at::Tensor& y,
               const at::Tensor& mean, const at::Tensor& rstd) {
  RECORD_FUNCTION("sd::group_norm", c10::ArrayRef<c10::IValue>{});
  const auto sizes = sizes_of_norm(call, x);
  const at::Tensor weight = as_floats(call.weight), bias = as_floats(call.bias);
  passes::with_type_of(x, [&](auto type) {
    using T = decltype(type);
    const T* const from = passes::data_of<T>(x);
    T* const to = passes::mutable_data_of<T>(y);
    if (!has_rows(x)) {
      const passes::PlanarForward<T> work{sizes,
                                          from,
                                          to,
                                          weight.const_data_ptr<float>(),
                                          bias.const_data_ptr<float>(),
                                          mean.mutable_data_ptr<float>(),
                                          rstd.mutable_data_ptr<float>()};
      return passes::run(sizes.batch * sizes.groups, x.numel(), work);
    }
    const int64_t items = sizes.batch * sizes.parts();
    const auto sums = at::zeros({2, items, sizes.channels}, mean.options().dtype(at::kDouble));
    const passes::RowsMoments<T> moments{sizes, from, sums[0].mutable_data_ptr<double>(),
                                         sums[1].mutable_data_ptr<double>()};
    passes::run(items, x.numel(), moments);
    finish_moments(sizes, sums[0], sums[1], mean, rstd);
    const auto tables = tables_of(call, sizes, mean, rstd);
    const passes::RowsForward<T> work{sizes, from, to, tables.scale.const_data_ptr<float>(),
                                      tables.shift.const_data_ptr<float>()};
    passes::run(sizes.batch * sizes.pixels, x.numel(), work);
  });
}

// What a gradient needs: sums of dz and of dz times the normalised x, (B, C) fp64.
struct NormSums {
  at::Tensor sums, products;
};

template <typename T>
NormSums planar_gradient(const NormCall& call, const at::Tensor& x, const at::Tensor& dy,
                         const at::Tensor& dx, const at::Tensor& mean, const at::Tensor& rstd) {
  const auto sizes = sizes_of_norm(call, x);
  const at::Tensor weight = as_floats(call.weight), bias = as_floats(call.bias);
  const auto doubles = mean.options().dtype(at::kDouble);
  const NormSums result{at::empty({sizes.batch, sizes.channels}, doubles),
                        at::empty({sizes.batch, sizes.channels}, doubles)};
  const passes::PlanarBackward<T> work{sizes,
                                       passes::data_of<T>(x),
                                       passes::data_of<T>(dy),
                                       passes::mutable_data_of<T>(dx),
                                       weight.const_data_ptr<float>(),
                                       bias.const_data_ptr<float>(),
                                       mean.const_data_ptr<float>(),
                                       rstd.const_data_ptr<float>(),
                                       result.sums.mutable_data_ptr<double>(),
                                       result.products.mutable_data_ptr<double>()};
  passes::run(sizes.batch * sizes.groups, 2 * x.numel(), work);
  return result;
}

template <typename T>
NormSums rows_gradient(const NormCall& call, const at::Tensor& x, const at::Tensor& dy,
                       const at::Tensor& dx, const at::Tensor& mean, const at::Tensor& rstd) {
  const auto sizes = sizes_of_norm(call, x);
  const auto tables = tables_of(call, sizes, mean, rstd);
  const auto of_channels = [&](const at::Tensor& of_groups) {
    return of_groups.repeat_interleave(sizes.width(), /*dim=*/1).to(at::kFloat).contiguous();
  };
  const at::Tensor hat_scale = of_channels(rstd), hat_shift = of_channels(-mean * rstd);
  const int64_t items = sizes.batch * sizes.parts();
  const auto parts = at::zeros({2, items, sizes.channels}, mean.options().dtype(at::kDouble));
  const passes::RowsSums<T> first{sizes,
                                  passes::data_of<T>(x),
                                  passes::data_of<T>(dy),
                                  tables.scale.const_data_ptr<float>(),
                                  tables.shift.const_data_ptr<float>(),
                                  hat_scale.const_data_ptr<float>(),
                                  hat_shift.const_data_ptr<float>(),
                                  parts[0].mutable_data_ptr<double>(),
                                  parts[1].mutable_data_ptr<double>()};
  passes::run(items, 2 * x.numel(), first);
  const auto both = parts.view({2, sizes.batch, sizes.parts(), sizes.channels}).sum(2);
  // (2, B, G): the sums of a group, its channels weighed.
  const auto of_groups = (both * call.weight.detach().to(at::kDouble))
                             .view({2, sizes.batch, sizes.groups, sizes.width()})
                             .sum(3) /
                         static_cast<double>(sizes.pixels * sizes.width());
  const auto r = rstd.to(at::kDouble);
  const auto slope = -(r * r * of_groups[1]);
  const auto offset = -(r * of_groups[0]) - mean.to(at::kDouble) * slope;
  const at::Tensor slopes = of_channels(slope), offsets = of_channels(offset);
  const passes::RowsBackward<T> work{sizes,
                                     passes::data_of<T>(x),
                                     passes::data_of<T>(dy),
                                     passes::mutable_data_of<T>(dx),
                                     tables.scale.const_data_ptr<float>(),
                                     tables.shift.const_data_ptr<float>(),
                                     slopes.const_data_ptr<float>(),
                                     offsets.const_data_ptr<float>()};
  passes::run(sizes.batch * sizes.pixels, 2 * x.numel(), work);
  return {both[0], both[1]};
}

variable_list gradient_of_operators(const NormCall& call, const at::Tensor& x,
                                    const at::Tensor& dy) {
  variable_list inputs;
  for (const auto& input : {x, call.weight, call.bias}) {
    if (input.requires_grad()) inputs.push_back(input);
  }
  auto grads = torch::autograd::grad({norm_of_operators(call, x)}, inputs, {dy},
                                     /*retain_graph=*/true, /*create_graph=*/true);
  variable_list result;
  size_t next = 0;
  for (const auto& input : {x, call.weight, call.bias}) {
    result.push_back(input.requires_grad() ? grads[next++] : at::Tensor());
  }
  return result;
}

struct FusedGroupNorm : torch::autograd::Function<FusedGroupNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& given,
                            const at::Tensor& weight, const at::Tensor& bias, int64_t groups,
                            double eps, bool activates) {
    const at::Tensor x = given.contiguous(given.suggest_memory_format());
    const auto options = at::TensorOptions().dtype(at::kFloat);
    const auto mean = at::empty({x.size(0), groups}, options);
    const auto rstd = at::empty({x.size(0), groups}, options);
    at::Tensor y = at::empty_like(x);
    norm_pass({weight, bias, groups, eps, activates}, x, y, mean, rstd);
    ctx->save_for_backward({given, weight, bias});
    ctx->saved_data["mean"] = mean;
    ctx->saved_data["rstd"] = rstd;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activates"] = activates;
    return y;
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const NormCall call{saved[1], saved[2], ctx->saved_data["groups"].toInt(),
                        ctx->saved_data["eps"].toDouble(), ctx->saved_data["activates"].toBool()};
    const at::Tensor none;
    if (at::GradMode::is_enabled()) {
      const auto all = gradient_of_operators(call, saved[0], grads[0]);
      return {all[0], all[1], all[2], none, none, none};
    }
    const auto format = saved[0].suggest_memory_format();
    const at::Tensor x = saved[0].contiguous(format), dy = grads[0].contiguous(format);
    const at::Tensor dx = at::empty_like(x);
    const at::Tensor mean = ctx->saved_data["mean"].toTensor();
    const at::Tensor rstd = ctx->saved_data["rstd"].toTensor();
    RECORD_FUNCTION("sd::group_norm_gradient", c10::ArrayRef<c10::IValue>{});
    NormSums sums;
    passes::with_type_of(x, [&](auto type) {
      using T = decltype(type);
      sums = has_rows(x) ? rows_gradient<T>(call, x, dy, dx, mean, rstd)
                         : planar_gradient<T>(call, x, dy, dx, mean, rstd);
    });
    const auto of_parameter = [](const at::Tensor& parameter, const at::Tensor& parts) {
      return parameter.requires_grad() ? parts.sum(0).to(parameter.scalar_type()) : at::Tensor();
    };
    return {dx,
            of_parameter(call.weight, sums.products),
            of_parameter(call.bias, sums.sums),
            none,
            none,
            none};
  }
};

bool takes_passes(const NormCall& call, const at::Tensor& x) {
  if (!passes::readable(x) || x.dim() != 4 || !call.weight.defined() || !call.bias.defined()) {
    return false;
  }
  // Adapters of a norm take over LibTorch's operator.
  const auto fits = [&](const at::Tensor& parameter) {
    return !lightlora::is_adapted(parameter) && parameter.device().is_cpu() &&
           parameter.numel() == x.size(1) &&
           (parameter.scalar_type() == x.scalar_type() || parameter.scalar_type() == at::kFloat);
  };
  return call.groups > 0 && x.size(1) % call.groups == 0 && fits(call.weight) && fits(call.bias);
}

#endif

at::Tensor normed(const NormCall& call, const at::Tensor& x, bool in_place) {
#if SD_VECTORS
  if (takes_passes(call, x)) {
    const bool differentiates =
        at::GradMode::is_enabled() &&
        (x.requires_grad() || call.weight.requires_grad() || call.bias.requires_grad());
    if (differentiates) {
      return FusedGroupNorm::apply(x, call.weight, call.bias, call.groups, call.eps,
                                   call.activates);
    }
    const at::Tensor from = x.contiguous(x.suggest_memory_format());
    const at::Tensor y = in_place ? from : at::empty_like(from);
    const auto options = at::TensorOptions().dtype(at::kFloat);
    norm_pass(call, from, y, at::empty({x.size(0), call.groups}, options),
              at::empty({x.size(0), call.groups}, options));
    return y;
  }
#endif
  static_cast<void>(in_place);
  return norm_of_operators(call, x);
}

NormCall call_of(const torch::nn::GroupNormImpl& norm, bool activates) {
  return {norm.weight, norm.bias, norm.options.num_groups(), norm.options.eps(), activates};
}

}  // namespace

at::Tensor group_norm(torch::nn::GroupNormImpl& norm, const at::Tensor& x) {
  return normed(call_of(norm, /*activates=*/false), x, /*in_place=*/false);
}

at::Tensor group_norm_silu(torch::nn::GroupNormImpl& norm, const at::Tensor& x) {
  return normed(call_of(norm, /*activates=*/true), x, /*in_place=*/false);
}

at::Tensor group_norm_silu_of(torch::nn::GroupNormImpl& norm, at::Tensor fresh) {
  return normed(call_of(norm, /*activates=*/true), fresh, /*in_place=*/true);
}

}  // namespace sd
