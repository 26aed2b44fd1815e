// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "models/unet.h"
#include "models/vae.h"

// The names that the original code of Stable Diffusion gives the tensors of our modules. Files
// with them are what most sites offer as one .safetensors or .ckpt.

namespace sd {

/// What the names of each part begin with in a whole checkpoint.
inline constexpr const char* kLdmUnet = "model.diffusion_model.";
inline constexpr const char* kLdmVae = "first_stage_model.";
inline constexpr const char* kLdmTextEncoder = "cond_stage_model.transformer.";

/// The original name, without its beginning, of a tensor of the UNet with those options.
/// Errors: c10::Error for a name that such a UNet does not have
std::string ldm_unet_name(const std::string& name, const UNet2DConditionModelOptions& options);

/// The original name, without its beginning, of a tensor of the autoencoder with those options.
/// The attention's matrices are the kernels of 1x1 convolutions there.
/// Errors: c10::Error for a name that such an autoencoder does not have
std::string ldm_vae_name(const std::string& name, const AutoencoderKLOptions& options);

}  // namespace sd
