// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/packing.h>
#include <torch/nn/modules/conv.h>

namespace sd {

/// The frozen kernels of one convolution, transformed as `winograd_convolution` reads them: 16/9 of
/// their memory, and once more where gradients pass. Made at the first use; a change is seen.
class WinogradKernels {
 public:
  /// Panels of outputs, see kernels/winograd_kernels.h, and the same of the gradient's convolution.
  at::Tensor forward(const at::Tensor& weight);
  at::Tensor backward(const at::Tensor& weight);

 private:
  lightlora::InferenceCache forward_, backward_;
};

/// Whether this machine computes maps of such a dtype and device by Winograd's way: on a CPU with
/// AVX-512 in fp32, and with its bf16 products in bf16, unless it has matrix units for these.
bool has_winograd(const at::Tensor& map);

/// layer(x) for a layer with a 3x3 kernel, stride 1 and padding 1, without groups and dilation, with
/// 16 products for four results instead of 36. The result is channels last.
/// Equation: y = A^T (sum over channels of (G g G^T) (B^T d B)) A of tiles d of 4x4 pixels
/// Paper:    Lavin and Gray 2015, arXiv:1509.09308, F(2x2, 3x3)
/// Error:    in fp32 as the direct sum's; in bf16 about 4e-3 of the result, the direct sum's is
///           1.7e-3, because inputs and kernels are rounded once more
/// Layers that train, that adapters act on or whose maps are small are called as they are, and all
/// of them without `kernels`.
at::Tensor winograd_convolution(torch::nn::Conv2dImpl& layer, const at::Tensor& x,
                                WinogradKernels* kernels);

}  // namespace sd
