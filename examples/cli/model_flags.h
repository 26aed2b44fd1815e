// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "cli/app.h"

namespace cli {

/// Which model a program uses, and how to read it.
struct ModelFlags {
  std::string model, model_config;
  bool allow_trailing_bytes = false;
};

/// Puts --pretrained_model_name_or_path, which is required, into the current group.
void add_model_flag(App& app, ModelFlags& flags);

/// Puts --model_config and --allow_trailing_bytes into the current group.
void add_single_file_flags(App& app, ModelFlags& flags);

}  // namespace cli
