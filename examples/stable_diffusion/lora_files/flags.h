// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lora_files/combine.h"
#include "lora_files/extract.h"
#include "support/cli/app.h"

namespace lora_files {

/// What convert_lora was asked for.
struct Flags {
  std::vector<std::string> inputs;
  std::string output, to;
  c10::ScalarType dtype = c10::kFloat;
  std::optional<int64_t> rank;   ///< to cut each layer to
  std::optional<double> energy;  ///< share of the squared singular values to keep
  ExtractOptions extract;
  bool inspect = false, doctor = false, json = false, embed_aux = false, flat_text_encoder = false;
  bool ignore_unmatched = false;

  /// Errors: c10::ValueError for flags that do not go together
  void check() const;
  /// How much of each layer the two say to keep.
  lightlora::Keep keep() const;
};

void add_flags(cli::App& app, Flags& flags);

}  // namespace lora_files
