// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <nlohmann/json.hpp>

namespace sd {

/// The families whose originals differ in what shapes do not tell.
enum class ModelFamily { sd1, sd2, sdxl };

/// The scheduler's configuration of a single file that has none: that of its family, with what the
/// file says about its UNet's prediction. In this order: the tensors `v_pred` and `ztsnr`,
/// with which A1111 and ComfyUI mark files; the metadata `modelspec.prediction_type` of sd-scripts
/// or `modelspec.predict_key` of ComfyUI; `parameterization` in a `.yaml` of the same name beside
/// it, as the original code and A1111 read it. A file that says nothing is taken to predict noise, of
/// Stable Diffusion 2.x v; a notice says so, once.
nlohmann::json single_file_scheduler(const lightlora::TensorFile& file,
                                     ModelFamily family = ModelFamily::sd1);

/// The metadata that tell other programs of a scheduler's prediction; empty if they have no word.
lightlora::Metadata prediction_metadata(const nlohmann::json& scheduler);

}  // namespace sd
