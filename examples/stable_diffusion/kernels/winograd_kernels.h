// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/simd.h"

namespace sd::simd {

/// Sizes of a convolution with a 3x3 kernel, stride 1 and a padding of 1.
struct ConvolutionSizes {
  int64_t batch, height, width, in, out;
};

/// Results of this many output channels are made at a time: four vectors.
constexpr int64_t kPanel = 64;

/// A convolution by Winograd's way, see kernels/winograd.h. Maps are channels last and dense, `in`
/// is even in bf16. The weights, transformed, are those of one panel of outputs after another, each
/// (16 points, in / kPair, lanes of the panel, kPair) with the outputs filled up to whole vectors.
template <typename T>
struct WinogradCall {
  ConvolutionSizes sizes;
  const T *x, *weights;
  const float* bias;  ///< of the outputs; null: none
  T* y;
};

#if SD_SIMD

/// T is float or Bf16; any number of threads has the same result.
template <typename T>
void winograd(const WinogradCall<T>& call);

extern template void winograd(const WinogradCall<float>&);
extern template void winograd(const WinogradCall<Bf16>&);

#endif

}  // namespace sd::simd
