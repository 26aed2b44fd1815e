// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "pipeline/pipeline.h"
#include "support/cli/app.h"

namespace sd {

/// Which model a program uses, and how to load it.
struct ModelOptions {
  std::string path;          ///< a folder in diffusers layout or a single file
  int64_t memory_limit = 0;  ///< bytes of the process; 0: none
  StableDiffusionOptions load = StableDiffusionOptions().pack_weights(PackWeights::if_small);
};

/// Puts --pretrained_model_name_or_path, which is required, into the current group.
void bind_model(cli::App& app, ModelOptions& options);

/// Puts --prediction_type into the current group, for programs that draw or train.
void bind_prediction_type(cli::App& app, ModelOptions& options);

/// Puts --model_config and --allow_trailing_bytes into the current group.
void bind_single_file(cli::App& app, ModelOptions& options);

/// Puts --pretrained_vae_model_name_or_path and --taesd into the current group.
void bind_vae(cli::App& app, ModelOptions& options);

/// Puts --pack_weights into the current group; `exception` ends the sentence on what "auto" means.
void bind_pack_weights(cli::App& app, ModelOptions& options, const std::string& exception = "");

/// Puts --unet into the current group.
void bind_unet(cli::App& app, ModelOptions& options);

/// Puts --base_precision into the current group.
void bind_base_precision(cli::App& app, ModelOptions& options);

/// Puts --memory_limit into the current group.
void bind_memory_limit(cli::App& app, ModelOptions& options);

/// How the model is to be loaded by a program whose results go to `folder`, which need not exist yet.
StableDiffusionOptions load_beside(const std::string& folder, const ModelOptions& options);

/// "--pretrained_model_name_or_path DIR", with what else was said of the model, another autoencoder
/// among it, for a command to copy into a shell.
std::string model_arguments(const ModelOptions& options);

}  // namespace sd
