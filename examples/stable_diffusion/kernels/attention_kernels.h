// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/simd.h"

namespace sd::simd {

/// Tokens (batch, tokens, heads * width) as they lie in memory, heads and channels side by side.
template <typename T>
struct Tokens {
  T* data = nullptr;
  int64_t batch_stride = 0, stride = 0;
};

struct AttentionSizes {
  int64_t batch, heads, queries, keys, width;
};

/// softmax(query key^T * scale) value of each head.
template <typename T>
struct AttentionForward {
  AttentionSizes sizes;
  bool causal;  ///< a query has no more keys than its own place and those before it
  Tokens<const T> query, key, value;
  Tokens<T> out;
  float scale;
  /// Of each query, (batch, heads, queries): its weights are 2^(score log2(e) - exponent) times
  /// inverse. Left out if null.
  float *exponent, *inverse;
};

template <typename T>
struct AttentionBackward {
  AttentionSizes sizes;
  bool causal;
  Tokens<const T> query, key, value, out, grad_out;
  Tokens<T> grad_query, grad_key, grad_value;
  float scale;
  const float *exponent, *inverse;
};

#if SD_SIMD

constexpr float kLog2OfE = 1.44269504F;

/// work(first, last) over [0, count) on LibTorch's threads; each is worth a thread of its own.
/// Defined in fused_attention.cpp: what includes this header alone needs no LibTorch.
void in_threads(int64_t count, const std::function<void(int64_t, int64_t)>& work);

/// T is float or Bf16. No score matrix is ever held; any number of threads has the same result.
template <typename T>
void attention_forward(const AttentionForward<T>& call);
template <typename T>
void attention_backward(const AttentionBackward<T>& call);

extern template void attention_forward(const AttentionForward<float>&);
extern template void attention_forward(const AttentionForward<Bf16>&);
extern template void attention_backward(const AttentionBackward<float>&);
extern template void attention_backward(const AttentionBackward<Bf16>&);

#endif

}  // namespace sd::simd
