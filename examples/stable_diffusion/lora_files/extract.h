// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <string>
#include <vector>

#include "lora_files/combine.h"
#include "pipeline/model_options.h"

namespace lora_files {

/// Which difference to take, and of which layers. Names of layers as in `lightlora::Targets`; the
/// defaults are those that kohya's sd-scripts extract.
struct ExtractOptions {
  std::string tuned;      ///< the fine-tuned model: a folder or a single file
  sd::ModelOptions base;  ///< the model that it was made from; its configuration counts for both
  std::vector<std::string> unet{"to_q",          "to_k",     "to_v",    "to_out.0",
                                "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"};
  std::vector<std::string> text_encoder{"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"};
  lightlora::Keep keep = lightlora::Keep::all();  ///< how much of each layer
};

struct Extracted {
  lightlora::Components components;
  double kept = 1;                   ///< share of the energy of the selected layers' differences
  std::vector<std::string> notices;  ///< what else differs, which the result cannot hold
};

/// The difference of two models as a LoRA. In memory are two copies, in fp32, of the UNet, and then
/// of the text encoder. A layer whose weights are equal in both gets no adapter.
/// Errors: those of reading the models; c10::Error if the selected layers do not differ, or a name
///         selects none
Extracted extract(const ExtractOptions& options);

}  // namespace lora_files
