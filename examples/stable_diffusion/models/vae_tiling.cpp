// SPDX-License-Identifier: Apache-2.0
// Encoding and decoding in overlapping tiles, as diffusers' enable_tiling does it.
#include <ATen/ATen.h>

#include <algorithm>

#include "models/vae.h"

namespace sd {
namespace {

// Fades from the end of `before` into the start of `tile`, in place, along a dimension.
void blend(const at::Tensor& before, const at::Tensor& tile, int64_t extent, int64_t dim) {
  extent = std::min({extent, before.size(dim), tile.size(dim)});
  if (extent == 0) return;
  std::vector<int64_t> shape(static_cast<size_t>(tile.dim()), 1);
  shape[static_cast<size_t>(dim)] = extent;
  const auto share = (at::arange(extent, tile.options()) / static_cast<double>(extent)).view(shape);
  const auto from = before.narrow(dim, before.size(dim) - extent, extent);
  auto to = tile.narrow(dim, 0, extent);
  to.copy_(from * (1 - share) + to * share);
}

}  // namespace

at::Tensor in_tiles(const at::Tensor& x, int64_t tile, int64_t result_tile,
                    const std::function<at::Tensor(const at::Tensor&)>& transform) {
  const int64_t stride = tile - tile / 4;
  const int64_t extent = result_tile / 4;
  const int64_t kept = result_tile - extent;
  std::vector<at::Tensor> above, rows;
  for (int64_t y = 0; y < x.size(2); y += stride) {
    const auto band = x.narrow(2, y, std::min(tile, x.size(2) - y));
    std::vector<at::Tensor> row, parts;
    for (int64_t left = 0; left < x.size(3); left += stride) {
      const auto part = band.narrow(3, left, std::min(tile, x.size(3) - left));
      row.push_back(transform(part.contiguous()));
      const auto& done = row.back();
      if (!above.empty()) blend(above[row.size() - 1], done, extent, /*dim=*/2);
      if (row.size() > 1) blend(row[row.size() - 2], done, extent, /*dim=*/3);
      parts.push_back(done.narrow(2, 0, std::min(kept, done.size(2)))
                          .narrow(3, 0, std::min(kept, done.size(3))));
    }
    rows.push_back(at::cat(parts, /*dim=*/3));
    above = std::move(row);
  }
  return at::cat(rows, /*dim=*/2);
}

int64_t AutoencoderKLImpl::latent_tile() const {
  // A quarter overlaps, so the side has to divide by four.
  const int64_t side = options.sample_size().front() / options.downsampling();
  return std::max<int64_t>(side - side % 4, 4);
}

}  // namespace sd
