// SPDX-License-Identifier: Apache-2.0
#include "kernels/geglu.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/passes.h"

namespace sd {
namespace {

at::Tensor geglu_of_operators(const at::Tensor& both) {
  const auto halves = both.chunk(2, /*dim=*/-1);
  at::Tensor gate = at::gelu(halves[1]);
  return gate.requires_grad() ? halves[0] * gate : gate.mul_(halves[0]);
}

#if SD_VECTORS

template <typename T>
struct GegluForward {
  const T* both;
  T* y;
  int64_t width;

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const T *value = both + row * 2 * width, *gate = value + width;
      T* to = y + row * width;
      for (int64_t c = 0; c < width; c += S::W) {
        typename S::Vector v, g, cumulative, density;
        passes::load_some<S>(v, value + c, width - c);
        passes::load_some<S>(g, gate + c, width - c);
        passes::normal<S>(cumulative, density, g);
        passes::store_some<S>(to + c, v * (g * cumulative), width - c);
      }
    }
  }
};

template <typename T>
struct GegluBackward {
  const T *both, *dy;
  T* dx;
  int64_t width;

  template <typename S>
  SD_VECTORS_INLINE void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const T *value = both + row * 2 * width, *gate = value + width, *from = dy + row * width;
      T *to_value = dx + row * 2 * width, *to_gate = to_value + width;
      for (int64_t c = 0; c < width; c += S::W) {
        typename S::Vector v, g, d, cumulative, density;
        passes::load_some<S>(v, value + c, width - c);
        passes::load_some<S>(g, gate + c, width - c);
        passes::load_some<S>(d, from + c, width - c);
        passes::normal<S>(cumulative, density, g);
        passes::store_some<S>(to_value + c, d * (g * cumulative), width - c);
        passes::store_some<S>(to_gate + c, d * v * (cumulative + g * density), width - c);
      }
    }
  }
};

at::Tensor geglu_pass(const at::Tensor& both) {
  RECORD_FUNCTION("sd::geglu", c10::ArrayRef<c10::IValue>{});
  auto sizes = both.sizes().vec();
  sizes.back() /= 2;
  at::Tensor y = at::empty(sizes, both.options());
  const int64_t width = sizes.back();
  passes::with_type_of(both, [&](auto type) {
    using T = decltype(type);
    const GegluForward<T> work{passes::data_of<T>(both), passes::mutable_data_of<T>(y), width};
    passes::run(y.numel() / width, both.numel() + y.numel(), work);
  });
  return y;
}

at::Tensor geglu_gradient_pass(const at::Tensor& both, const at::Tensor& dy) {
  RECORD_FUNCTION("sd::geglu_gradient", c10::ArrayRef<c10::IValue>{});
  at::Tensor dx = at::empty(both.sizes(), both.options());
  const int64_t width = dy.size(-1);
  passes::with_type_of(both, [&](auto type) {
    using T = decltype(type);
    const GegluBackward<T> work{passes::data_of<T>(both), passes::data_of<T>(dy),
                                passes::mutable_data_of<T>(dx), width};
    passes::run(dy.numel() / width, 2 * both.numel() + dy.numel(), work);
  });
  return dx;
}

struct Geglu : torch::autograd::Function<Geglu> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& both) {
    ctx->save_for_backward({both});
    return geglu_pass(both.contiguous());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const at::Tensor both = ctx->get_saved_variables()[0];
    if (!at::GradMode::is_enabled()) {
      return {geglu_gradient_pass(both.contiguous(), grads[0].contiguous())};
    }
    const auto halves = both.chunk(2, /*dim=*/-1);
    return {at::cat(
        {grads[0] * at::gelu(halves[1]), at::gelu_backward(grads[0] * halves[0], halves[1])},
        /*dim=*/-1)};
  }
};

#endif

}  // namespace

at::Tensor geglu(const at::Tensor& both) {
#if SD_VECTORS
  if (passes::readable(both) && both.dim() > 0 && both.size(-1) % 2 == 0) {
    const bool differentiates = both.requires_grad() && at::GradMode::is_enabled();
    return differentiates ? Geglu::apply(both) : geglu_pass(both.contiguous());
  }
#endif
  return geglu_of_operators(both);
}

}  // namespace sd
