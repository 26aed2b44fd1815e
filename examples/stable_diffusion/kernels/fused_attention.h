// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace sd {

/// softmax(q k^T / sqrt(d)) v of several heads that lie side by side, d = C / heads. With `causal` a
/// query has the key of its own place and those before it.
/// On a CPU with AVX-512 in fp32, and with its bf16 products in bf16, by blocks: no score matrix is
/// held, no width padded and nothing transposed, and the gradient needs the arguments, the result
/// and two numbers for each query. Otherwise, and where the gradient is differentiated again,
/// LibTorch's operators. Results do not depend on the number of threads.
/// Shapes: query (B, N, C), key and value (B, T, C), result (B, N, C)
at::Tensor fused_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           int64_t heads, bool causal = false);

/// Whether the kernels of this application take such arguments.
bool has_fused_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         int64_t heads);

}  // namespace sd
