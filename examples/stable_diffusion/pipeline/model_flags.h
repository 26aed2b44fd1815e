// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "support/cli/app.h"
#include "models/packing.h"

namespace sd {

/// Which model a program uses, and how to read it.
struct ModelFlags {
  std::string model, model_config;
  bool allow_trailing_bytes = false;
  std::string pack_weights = "auto";

  /// What --pack_weights says; `otherwise` is what "auto" means.
  sd::PackWeights packing(sd::PackWeights otherwise = sd::PackWeights::if_small) const;
};

/// Puts --pretrained_model_name_or_path, which is required, into the current group.
void add_model_flag(cli::App& app, ModelFlags& flags);

/// Puts --model_config and --allow_trailing_bytes into the current group.
void add_single_file_flags(cli::App& app, ModelFlags& flags);

/// Puts --pack_weights into the current group; `exception` ends the sentence on what "auto" means.
void add_pack_weights_flag(cli::App& app, ModelFlags& flags, const std::string& exception = "");

}  // namespace sd
