// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "models/unet.h"

namespace sd {

/// Whether the UNet's weights are kept in the CPU kernels' layout too, see lightlora::pack_weights:
/// a good deal faster, for once more their memory, or twice where gradients pass. `if_small`: where
/// they are at most a sixth of the machine's memory and 4 GB.
enum class PackWeights { off, on, if_small };

/// How the frozen weights of the UNet's linear layers and convolutions are kept: in the dtype that the
/// model is loaded in, or in eight bits, see lightlora::quantize.
enum class BasePrecision { same, int8 };

/// Whether a weight is one of those that `quantise` keeps in eight bits. The layers at both ends of
/// the UNet and those of its timestep are small, and every error in them reaches everything.
bool may_be_quantised(const std::string& path, const torch::Tensor& weight);

/// lightlora::quantize for them.
void quantise(UNet2DConditionModel& unet);

/// lightlora::pack_weights for those layers of a UNet that gain by it: every linear layer, and the
/// convolutions whose kernels are large beside their pixels, as in Stable Diffusion's levels of 640
/// and 1280 channels. With few channels LibTorch's own convolution is the faster one.
void pack_weights(UNet2DConditionModel& unet);

}  // namespace sd
