// SPDX-License-Identifier: Apache-2.0
#include "pipeline/model_flags.h"

namespace sd {

void add_model_flag(cli::App& app, ModelFlags& f) {
  app.add_option("--pretrained_model_name_or_path", f.model,
                 "Stable Diffusion model: a folder in diffusers layout, or one of 1.x as a single "
                 ".safetensors or .ckpt file")
      ->required();
}

void add_single_file_flags(cli::App& app, ModelFlags& f) {
  app.add_option("--model_config", f.model_config,
                 "For a single file: folder in diffusers layout with its configurations and "
                 "tokenizer (default: the file's own folder, or those of Stable Diffusion 1.x)");
  app.add_flag("--allow_trailing_bytes", f.allow_trailing_bytes,
               "Accept models and LoRA files with bytes behind their last tensor, which some "
               "published ones have");
}

sd::PackWeights ModelFlags::packing(sd::PackWeights otherwise) const {
  if (pack_weights == "auto") return otherwise;
  return pack_weights == "on" ? sd::PackWeights::on : sd::PackWeights::off;
}

void add_pack_weights_flag(cli::App& app, ModelFlags& f, const std::string& exception) {
  app.add_option("--pack_weights", f.pack_weights,
                 "On a CPU, keep the UNet's weights in its kernels' layout too: faster, for more "
                 "memory; auto: if they are at most a sixth of the machine's memory" + exception)
      ->check(cli::one_of({"auto", "on", "off"}));
}

}  // namespace sd
