// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <string>

#include "models/unet.h"
#include "models/weights.h"

namespace sd {

/// Fills a UNet from a file of its own: safetensors, GGUF or torch.save's, with the names of diffusers
/// or of the original code, these with or without what they begin with in a whole checkpoint, whose
/// other parts are passed over.
/// Errors: those of `load_weights`
void load_unet_file(UNet2DConditionModelImpl& unet, const std::string& path,
                    const UNet2DConditionModelOptions& options,
                    const lightlora::SafetensorsOptions& file_options,
                    const BeforeFilling& before_filling);

}  // namespace sd
