// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/nn/module.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "models/clip.h"
#include "models/unet.h"
#include "models/vae.h"

// The diffusers folder that the stages fill: one subfolder a stage writes is never touched by
// another.

namespace pretraining {

/// Configurations of the parts as diffusers and transformers write them, from the program's own:
/// its `model` object and the class names.
nlohmann::json vae_config(const nlohmann::json& config, double scaling_factor);
nlohmann::json unet_config(const nlohmann::json& config);
nlohmann::json text_encoder_config(const nlohmann::json& config, int64_t vocab_size,
                                   const std::string& part = "text_encoder");
nlohmann::json scheduler_config(const nlohmann::json& config);

/// Whether the model has SDXL's form, with `text_encoder_2`.
bool is_sdxl(const nlohmann::json& config);

/// Writes `<folder>/<subfolder>/config.json` and the weights in fp16.
void save_part(const std::string& folder, const std::string& subfolder,
               const nlohmann::json& config, const lightlora::TensorMap& weights);

/// Writes `model_index.json`, `scheduler/scheduler_config.json` and, for SDXL's form, a second copy of
/// the tokenizer.
void save_index(const std::string& folder, const nlohmann::json& config);

/// Writes text as a file that is whole or not there.
void write_text(const std::string& path, const std::string& text);

/// Gives 4-dimensional weights the channels-last layout, in which CPU convolutions are faster.
void use_channels_last(torch::nn::Module& module);

/// The autoencoder of a folder, in fp32.
sd::AutoencoderKL load_vae(const std::string& folder);

/// Fills a module with the weights of one part of such a folder, "unet" say, in the module's dtype.
/// Errors: those of sd::load_weights
void load_part(torch::nn::Module& module, const std::string& folder, const std::string& subfolder);

/// Calls `work`, for which numbers and texts are read from a configuration all along: what is wrong
/// with these is then an error that names the file.
/// Errors: c10::Error naming `path` for a field that is missing, of another type or out of range
void with_config_name(const std::string& path, const std::function<void()>& work);

}  // namespace pretraining
