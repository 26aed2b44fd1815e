// SPDX-License-Identifier: Apache-2.0
#include "models/packing.h"

namespace sd {

void pack_weights(UNet2DConditionModel& unet) {
  constexpr int64_t kLargeKernels = 640 * 640 * 9;
  unet->packed = lightlora::pack_weights(*unet, [](const auto& /*path*/, const auto& weight) {
    return weight.dim() == 2 || weight.numel() >= kLargeKernels;
  });
}

}  // namespace sd
