// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/state.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

// What the files for other programs have in common: classic factors that every reader scales alike.

namespace lightlora::detail {

/// One layer as other programs' files hold it.
/// Shapes: down (rank, in) and up (out, rank); (rank, in, kh, kw) and (out, rank, 1, 1) for Conv2d;
///         magnitude (out, 1) or (1, in) with DoRA, otherwise undefined
struct PortableLayer {
  std::string component;
  std::string name;
  at::Tensor down, up, magnitude;
};

// Zero rows or columns up to a common rank: readers before diffusers 0.40 scale files of mixed
// ranks wrongly, and with alpha = rank the padding changes nothing.
inline at::Tensor pad_rank(const at::Tensor& factor, int64_t dim, int64_t rank) {
  const int64_t missing = rank - factor.size(dim);
  return missing == 0
             ? factor
             : at::constant_pad_nd(factor, dim == 0 ? std::vector<int64_t>{0, 0, 0, missing}
                                                    : std::vector<int64_t>{0, missing});
}

/// All layers with the scale folded in and one rank, so that alpha = rank holds everywhere.
inline std::vector<PortableLayer> portable_layers(const Components& components,
                                                  at::ScalarType dtype) {
  int64_t rank = 0;
  std::vector<std::pair<std::string, LayerState>> classic;
  std::vector<at::Tensor> magnitudes;
  for (const auto& [component, state] : components) {
    for (LayerState layer : state) {
      magnitudes.push_back(take_dora(layer).magnitude);
      classic.emplace_back(component, to_classic(*make_adapter(layer)));
      rank = std::max(rank, classic.back().second.options.rank());
    }
  }
  std::vector<PortableLayer> layers;
  for (std::size_t i = 0; i < classic.size(); ++i) {
    const auto& [component, layer] = classic[i];
    at::Tensor down = pad_rank(layer.trained.at("down"), 0, rank);
    at::Tensor up = pad_rank(layer.trained.at("up"), 1, rank);
    const auto& kernel = layer.layer.kernel;
    if (!kernel.empty()) {
      std::vector<int64_t> sizes{rank, -1};
      sizes.insert(sizes.end(), kernel.begin(), kernel.end());
      down = down.reshape(sizes);
      std::vector<int64_t> ones{layer.layer.out, rank};
      ones.resize(2 + kernel.size(), 1);
      up = up.reshape(ones);
    }
    layers.push_back(
        {component, layer.layer.name, down.to(dtype).contiguous(), up.to(dtype).contiguous(),
         magnitudes[i].defined() ? magnitudes[i].to(dtype).contiguous() : at::Tensor()});
  }
  return layers;
}

// PEFT's shape of the magnitude: (out), and for convolutions (1, out, 1, 1).
inline at::Tensor peft_magnitude(const PortableLayer& layer) {
  TORCH_CHECK(layer.magnitude.size(1) == 1, "'", layer.name,
              "': expected DoRA's length of each output, ",
              "got one of each input, which only LyCORIS has; hint: write kohya's or the native ",
              "format");
  std::vector<int64_t> sizes{layer.magnitude.size(0)};
  if (layer.down.dim() > 2) {
    sizes.insert(sizes.begin(), 1);
    sizes.resize(static_cast<std::size_t>(layer.down.dim()), 1);
  }
  return layer.magnitude.reshape(sizes);
}

}  // namespace lightlora::detail
