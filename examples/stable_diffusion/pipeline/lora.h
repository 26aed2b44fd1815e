// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"

namespace sd {

/// A LoRA file and the weight it is used with.
struct LoRAChoice {
  std::string path;
  double weight = 1.0;
};

/// Reads "FILE" or "FILE:WEIGHT"; a colon counts only if a number follows the last one.
LoRAChoice parse_lora(const std::string& text);

/// The adapters of one model that several LoRA files put into it; empty if none did.
struct LoadedLoRAs {
  lightlora::Patched unet;
  lightlora::Patched text_encoder;
};

/// Merges LoRA files into the models of a pipeline, which then run at their usual speed.
/// `split_rank` cuts their ranks first.
/// Errors: c10::Error naming the file, and then the layers that do not fit
LoadedLoRAs merge_loras(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
                        std::optional<int64_t> split_rank = std::nullopt);

/// Merges them anew with other weights, in the order of the choices.
void set_lora_weights(LoadedLoRAs& loaded, const std::vector<double>& weights);

}  // namespace sd
