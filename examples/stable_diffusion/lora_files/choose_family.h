// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lora_files/layer_places.h"
#include "lora_files/translate.h"

namespace lora_files {

/// A tensor of a file, for the choice of its family.
struct Candidate {
  std::vector<NamedPlace> places;  ///< what its layer's name can mean
  std::string layer, part;
  std::vector<int64_t> shape;
};

/// Which of `families()` a file is of: that which has the names of most tensors; of several, that
/// of `model_config`, or that which published models of these widths are of. None: the names are of
/// no family, or of none in the greater part.
/// Errors: c10::Error naming the file if several are left that the format spells differently, or if
///         the configuration is another family's
std::optional<int> choose_family(const std::string& path, const std::vector<Candidate>& tensors,
                                 const ReadTransformer& options);

}  // namespace lora_files
