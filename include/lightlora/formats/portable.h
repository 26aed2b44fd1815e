// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <lightlora/formats/native.h>
#include <lightlora/state.h>

#include <algorithm>
#include <string>
#include <vector>

// What the files for other programs have in common: classic factors that every reader scales alike.

namespace lightlora::detail {

/// One layer as other programs' files hold it.
/// Shapes: down (rank, in) and up (out, rank); (rank, in, kh, kw) and (out, rank, 1, 1) for Conv2d
struct PortableLayer {
  std::string component;
  std::string name;
  at::Tensor down, up;
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
  Components classic;
  for (const auto& [component, state] : components) {
    classic[component] = to_classic(state);
    for (const auto& layer : classic[component]) rank = std::max(rank, layer.options.rank());
  }
  std::vector<PortableLayer> layers;
  for (const auto& [component, state] : classic) {
    for (const auto& layer : state) {
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
          {component, layer.layer.name, down.to(dtype).contiguous(), up.to(dtype).contiguous()});
    }
  }
  return layers;
}

}  // namespace lightlora::detail
