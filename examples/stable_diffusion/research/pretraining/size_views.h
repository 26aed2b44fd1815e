// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>

// Pictures as a data set of the world has them: some were small and are enlarged, some are cut out
// of larger ones. A model in SDXL's form is told so, and learns what it looks like.

namespace pretraining {

/// Pictures and what a UNet is told about their sizes.
struct SizedPictures {
  at::Tensor pictures;  ///< (N, 3, H, W) fp32
  at::Tensor time_ids;  ///< (N, 6) fp32, in the order of sd::AddedConditions
};

/// Makes some of the pictures small and enlarges them again (`small`: their share), and cuts some
/// out of themselves enlarged by half (`cut`: their share), with original size and crop as they
/// then are. The pictures are samples `first` and on: each changes as its number says, whatever
/// batch it is in.
SizedPictures with_sizes(const at::Tensor& pictures, int64_t first, const nlohmann::json& options);

/// What a picture of that side is told that nothing happened to: (1, 6).
at::Tensor plain_sizes(int64_t side);

}  // namespace pretraining
