// SPDX-License-Identifier: Apache-2.0
#include "kernels/fused_attention.h"

#include <ATen/ATen.h>
#include <ATen/TracerMode.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <functional>

#include "kernels/attention_kernels.h"
#include "kernels/passes.h"

namespace sd {

namespace {

at::Tensor heads_first(const at::Tensor& x, int64_t heads) {
  return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
}

at::Tensor libtorch_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, int64_t heads, bool causal) {
  return at::scaled_dot_product_attention(heads_first(query, heads), heads_first(key, heads),
                                          heads_first(value, heads), /*attn_mask=*/{},
                                          /*dropout_p=*/0.0, causal)
      .transpose(1, 2)
      .flatten(2);
}

#if SD_SIMD

constexpr int64_t kWidest = 512;  // the autoencoder's one head

bool has_kernel(at::ScalarType dtype) {
  if (dtype == at::kFloat) return simd::has_avx512();
  return dtype == at::kBFloat16 && simd::has_avx512_bf16();
}

at::Tensor with_dense_rows(const at::Tensor& x) { return x.stride(2) == 1 ? x : x.contiguous(); }

template <typename T>
simd::Tokens<const T> tokens_of(const at::Tensor& x) {
  return {passes::data_of<T>(x), x.stride(0), x.stride(1)};
}

template <typename T>
simd::Tokens<T> new_tokens_of(const at::Tensor& x) {
  return {passes::mutable_data_of<T>(x), x.stride(0), x.stride(1)};
}

simd::AttentionSizes sizes_of(const at::Tensor& query, const at::Tensor& key, int64_t heads) {
  return {query.size(0), heads, query.size(1), key.size(1), query.size(2) / heads};
}

float scale_of(const simd::AttentionSizes& sizes) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.width)));
}

// The result and, if `sums` is defined, the two numbers that the gradient needs of each softmax.
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  int64_t heads, bool causal, const at::Tensor& sums) {
  const auto q = with_dense_rows(query), k = with_dense_rows(key), v = with_dense_rows(value);
  const auto sizes = sizes_of(q, k, heads);
  at::Tensor out = at::empty(q.sizes(), q.options());
  passes::with_type_of(q, [&](auto type) {
    using T = decltype(type);
    float* exponent = sums.defined() ? sums.mutable_data_ptr<float>() : nullptr;
    float* inverse = exponent ? exponent + sums.numel() / 2 : nullptr;
    simd::attention_forward<T>({sizes, causal, tokens_of<T>(q), tokens_of<T>(k), tokens_of<T>(v),
                                new_tokens_of<T>(out), scale_of(sizes), exponent, inverse});
  });
  return out;
}

struct FusedAttention : torch::autograd::Function<FusedAttention> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(Context* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, int64_t heads, bool causal) {
    const at::Tensor sums =
        at::empty({2, query.size(0), heads, query.size(1)}, query.options().dtype(at::kFloat));
    const at::Tensor out = attend(query, key, value, heads, causal, sums);
    context->save_for_backward({query, key, value, out, sums});
    context->saved_data["heads"] = heads;
    context->saved_data["causal"] = causal;
    return out;
  }

  static Variables backward(Context* context, const Variables& grads) {
    if (!grads[0].defined()) return Variables(5);
    const Variables saved = context->get_saved_variables();
    const int64_t heads = context->saved_data["heads"].toInt();
    const bool causal = context->saved_data["causal"].toBool();
    return at::GradMode::is_enabled() ? recorded_backward(*context, saved, grads[0], heads, causal)
                                      : fused_backward(saved, grads[0], heads, causal);
  }

 private:
  static Variables fused_backward(const Variables& saved, const at::Tensor& grad, int64_t heads,
                                  bool causal) {
    const auto q = with_dense_rows(saved[0]), k = with_dense_rows(saved[1]),
               v = with_dense_rows(saved[2]), dy = with_dense_rows(grad);
    const auto sizes = sizes_of(q, k, heads);
    const auto dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()),
               dv = at::empty(v.sizes(), v.options());
    passes::with_type_of(q, [&](auto type) {
      using T = decltype(type);
      const float* exponent = saved[4].const_data_ptr<float>();
      simd::attention_backward<T>({sizes, causal, tokens_of<T>(q), tokens_of<T>(k), tokens_of<T>(v),
                                   tokens_of<T>(saved[3]), tokens_of<T>(dy), new_tokens_of<T>(dq),
                                   new_tokens_of<T>(dk), new_tokens_of<T>(dv), scale_of(sizes),
                                   exponent, exponent + saved[4].numel() / 2});
    });
    return {dq, dk, dv, at::Tensor(), at::Tensor()};
  }

  // The same of operators that autograd knows, since this gradient is to be differentiated.
  static Variables recorded_backward(Context& context, const Variables& saved,
                                     const at::Tensor& grad, int64_t heads, bool causal) {
    // Three variables, even where query and key are one.
    const Variables own{saved[0].alias(), saved[1].alias(), saved[2].alias()};
    const auto q = heads_first(own[0], heads), k = heads_first(own[1], heads),
               v = heads_first(own[2], heads);
    const float scale = scale_of(sizes_of(own[0], own[1], heads));
    at::Tensor scores = q.matmul(k.transpose(-1, -2)) * scale;
    if (causal) scores = scores.masked_fill(at::ones_like(scores).triu(1).to(at::kBool), -HUGE_VAL);
    const at::Tensor weights = scores.softmax(-1);
    const at::Tensor out = weights.matmul(v).transpose(1, 2).flatten(2);
    Variables wanted, result(5);
    for (size_t i = 0; i < own.size(); ++i) {
      if (context.needs_input_grad(i)) wanted.push_back(own[i]);
    }
    const Variables found = torch::autograd::grad({out}, wanted, {grad}, /*retain_graph=*/true,
                                                  /*create_graph=*/true);
    for (size_t i = 0, next = 0; i < own.size(); ++i) {
      if (context.needs_input_grad(i)) result[i] = found[next++];
    }
    return result;
  }
};

#endif

}  // namespace

#if SD_SIMD
void simd::in_threads(int64_t count, const std::function<void(int64_t, int64_t)>& work) {
  passes::over(count, /*elements=*/count << 20, work);
}
#endif

bool has_fused_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         int64_t heads) {
#if SD_SIMD
  const auto dtype = query.scalar_type();
  if (!has_kernel(dtype) || !at::globalContext().userEnabledFlashSDP()) return false;
  if (at::autocast::is_autocast_enabled(at::kCPU) || at::tracer::impl::is_dispatch_enabled()) {
    return false;
  }
  for (const auto* x : {&query, &key, &value}) {
    if (!passes::readable(*x) || x->scalar_type() != dtype || x->dim() != 3 ||
        x->size(0) != query.size(0) || x->size(2) != query.size(2)) {
      return false;
    }
  }
  const int64_t width = query.size(2) / heads;
  return key.size(1) == value.size(1) && width * heads == query.size(2) && width % 2 == 0 &&
         width <= kWidest;
#else
  (void)query, (void)key, (void)value, (void)heads;
  return false;
#endif
}

at::Tensor fused_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           int64_t heads, bool causal) {
#if SD_SIMD
  if (has_fused_attention(query, key, value, heads)) {
    const bool differentiates =
        at::GradMode::is_enabled() &&
        (query.requires_grad() || key.requires_grad() || value.requires_grad());
    return differentiates ? FusedAttention::apply(query, key, value, heads, causal)
                          : attend(query, key, value, heads, causal, /*sums=*/{});
  }
#endif
  return libtorch_attention(query, key, value, heads, causal);
}

}  // namespace sd
