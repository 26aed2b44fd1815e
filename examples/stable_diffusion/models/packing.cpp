// SPDX-License-Identifier: Apache-2.0
#include "models/packing.h"

namespace sd {

void pack_weights(UNet2DConditionModel& unet) {
  constexpr int64_t kLargeKernels = 640 * 640 * 9;
  for (const auto& module : unet->modules()) {
    if (auto* linear = module->as<lightlora::LinearImpl>()) linear->set_packed(true);
    if (auto* conv = module->as<lightlora::Conv2dImpl>()) {
      conv->set_packed(conv->weight.numel() >= kLargeKernels);
    }
  }
}

}  // namespace sd
