// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <string>

#include "models/clip.h"

// The text encoder of Stable Diffusion 2.x and the second one of SDXL in a single file: OpenCLIP's
// names, with query, key and value of an attention in one matrix and the projection transposed.

namespace sd {

/// What the names begin with in a whole checkpoint of SDXL and of Stable Diffusion 2.x.
inline constexpr const char* kSgmTextEncoder = "conditioner.embedders.0.transformer.";
inline constexpr const char* kSgmOpenClip = "conditioner.embedders.1.model.";
inline constexpr const char* kLdmOpenClip = "cond_stage_model.model.";

/// Fills a text encoder from the tensors of a file that begin with `prefix`. Layers behind those of
/// the module, which the UNet does not read, and a projection that it lacks are passed over.
/// Errors: c10::Error naming the file and a tensor that is missing, unknown or of another shape
void load_open_clip(CLIPTextModelImpl& module, const lightlora::TensorFile& file,
                    const std::string& prefix);

/// A text encoder's tensors under those names, which begin with `prefix`, in a dtype.
lightlora::TensorMap to_open_clip(const CLIPTextModelImpl& module, const std::string& prefix,
                                  at::ScalarType dtype);

}  // namespace sd
