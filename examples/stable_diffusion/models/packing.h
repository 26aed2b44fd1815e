// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/packing.h>

#include <string>

#include "models/unet.h"

namespace sd {

/// Whether the UNet's weights are kept in the CPU kernels' layout too, see lightlora::pack_weights:
/// a good deal faster, for once more their memory, or twice where gradients pass. `if_small`: where
/// they are at most a sixth of the machine's memory and 4 GB.
enum class PackWeights { off, on, if_small };

/// How the frozen weights of the UNet's linear layers and convolutions are kept: in the dtype that the
/// model is loaded in, or in eight or four bits, see lightlora::quantize.
enum class BasePrecision { same, int8, nf4 };

/// "int8" or "nf4", for messages; empty for `same`.
std::string to_string(BasePrecision precision);

/// Bits that a number takes, its factors among them.
double bits_of(BasePrecision precision);

/// Whether a weight is one of those that `quantise` keeps in fewer bits. The layers at both ends of
/// the UNet and those of its timestep are small, and every error in them reaches everything.
bool may_be_quantised(const std::string& path, const torch::Tensor& weight);

/// lightlora::quantize for them, NF4 with factors in eight bits; `source` as in QuantizeOptions.
void quantise(UNet2DConditionModelImpl& unet, BasePrecision precision,
              const lightlora::QuantizeOptions::Source& source = {});

/// lightlora::pack_weights for those layers of a UNet that gain by it: every linear layer, and the
/// convolutions whose kernels are large beside their pixels, as in Stable Diffusion's levels of 640
/// and 1280 channels. With few channels LibTorch's own convolution is the faster one. Where the
/// machine has `winograd_convolution`, it takes the kernels of 3x3, and those of 1x1 are packed too.
void pack_weights(UNet2DConditionModel& unet);

}  // namespace sd
