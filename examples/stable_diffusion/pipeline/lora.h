// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/adapters.h"
#include "pipeline/pipeline.h"

namespace sd {

/// A LoRA file and the weight it is used with.
struct LoRAChoice {
  std::string path;
  double weight = 1.0;
};

/// Reads "FILE" or "FILE:WEIGHT"; a colon counts only if a number follows the last one.
LoRAChoice parse_lora(const std::string& text);

/// Merges LoRA files into the models of a pipeline, which then run at their usual speed.
/// `split_rank` cuts their ranks first.
/// Errors: c10::Error naming the file, and then the family that it is for, or the layers that do not
/// fit
PipelineAdapters merge_loras(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
                             std::optional<int64_t> split_rank = std::nullopt);

/// Merges them anew, each with this weight in place of its own.
void set_lora_weight(const PipelineAdapters& adapters, double weight);

}  // namespace sd
