// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stable_diffusion/unet.h"

namespace sd {

/// lightlora::pack_weights for those layers of a UNet that gain by it: every linear layer, and the
/// convolutions whose kernels are large beside their pixels, as in Stable Diffusion's levels of 640
/// and 1280 channels. With few channels LibTorch's own convolution is the faster one.
void pack_weights(UNet2DConditionModel& unet);

}  // namespace sd
