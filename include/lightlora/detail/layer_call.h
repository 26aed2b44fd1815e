// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>

// What a layer does beside the product with its weight. Adapters here run in the layer's own call and
// need not know it; who writes for programs that repeat the call must.

namespace lightlora::detail {

template <std::size_t D>
void describe_convolution(const torch::nn::detail::ConvNdOptions<D>& options, LayerInfo& info) {
  info.groups = options.groups();
  const std::array<int64_t, D>& kernel = *options.kernel_size();
  const std::array<int64_t, D>& dilation = *options.dilation();
  const std::array<int64_t, D>& stride = *options.stride();
  const auto* padding = std::get_if<torch::ExpandingArray<D>>(&options.padding());
  const bool same = std::holds_alternative<torch::enumtype::kSame>(options.padding());
  bool dilated = false, pads = false, one_padding = padding != nullptr;
  for (std::size_t i = 0; i < D; ++i) {
    const bool wide = kernel[i] > 1;  // otherwise there is nothing to spread, nor to pad to "same"
    dilated = dilated || (wide && dilation[i] > 1);
    pads = pads || (padding ? (**padding)[i] > 0 : same && wide);
    one_padding = one_padding && (**padding)[i] == (**padding)[0];
  }
  const bool zeros = std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode());
  if (pads && !zeros) info.uncommon.emplace_back("padding_mode");
  if (dilated) info.uncommon.emplace_back("dilation");
  const bool one_stride =
      std::all_of(stride.begin(), stride.end(), [&](int64_t step) { return step == stride[0]; });
  if (!one_stride) info.uncommon.emplace_back("stride");
  if (!one_padding) info.uncommon.emplace_back("padding");
}

/// Adds the call of a layer, which may be null, to what is known of it.
inline void describe_call(const torch::nn::Module* layer, LayerInfo& info) {
  namespace nn = torch::nn;
  if (const auto* one = dynamic_cast<const nn::Conv1dImpl*>(layer)) {
    describe_convolution(one->options, info);
  } else if (const auto* two = dynamic_cast<const nn::Conv2dImpl*>(layer)) {
    describe_convolution(two->options, info);
  } else if (const auto* three = dynamic_cast<const nn::Conv3dImpl*>(layer)) {
    describe_convolution(three->options, info);
  } else if (const auto* table = dynamic_cast<const nn::EmbeddingImpl*>(layer)) {
    if (table->options.max_norm()) info.uncommon.emplace_back("max_norm");
  }
}

}  // namespace lightlora::detail
