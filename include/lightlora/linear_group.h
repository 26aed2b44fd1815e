// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/linear.h>

#include <vector>

namespace lightlora {

/// Lays the weights of several linear layers one behind the other in one piece of memory, so that
/// `linear_group` can take them in one product. They stay parameters of their own: loading, saving,
/// merging and adapting go on as before. Moving or casting a layer undoes it; call this afterwards.
/// Errors: c10::ValueError unless the layers have the same inputs, dtype and device
void group_weights(const std::vector<LinearImpl*>& layers);

/// Several linear layers of one input, such as to_q, to_k and to_v, in one product: three kernels
/// forward instead of nine with adapters on them, one instead of three without.
/// Equation: y_i = layers[i](x)
/// Shapes:   x (..., in), y_i (..., out_i)
/// Layers that `group_weights` has not laid out, with a bias, a weight that trains, dropout or
/// variants without factors, and adapted ones without gradients are called one by one.
std::vector<at::Tensor> linear_group(const at::Tensor& x, const std::vector<LinearImpl*>& layers);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/linear_group.h>
#endif
