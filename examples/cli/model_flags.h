// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "cli/app.h"

namespace cli {

/// Which model a program uses, and how to read it.
struct ModelFlags {
  std::string model, model_config;
  bool allow_trailing_bytes = false;
  std::string pack_weights = "auto";

  /// What --pack_weights says, or `otherwise` for "auto".
  bool packs(bool otherwise) const { return pack_weights == "auto" ? otherwise : pack_weights == "on"; }
};

/// Puts --pretrained_model_name_or_path, which is required, into the current group.
void add_model_flag(App& app, ModelFlags& flags);

/// Puts --model_config and --allow_trailing_bytes into the current group.
void add_single_file_flags(App& app, ModelFlags& flags);

/// Puts --pack_weights into the current group; `automatic` says what "auto" means there.
void add_pack_weights_flag(App& app, ModelFlags& flags, const std::string& automatic);

}  // namespace cli
