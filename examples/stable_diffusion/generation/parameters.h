// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "generation/options.h"
#include "pipeline/lora.h"

// The settings of a picture in the form that A1111's web UI writes into PNG files, key
// "parameters":
//
//     a red apple <lora:fruit:0.8>
//     Negative prompt: blurry
//     Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, ...

namespace generation {

/// One text of that form, in its parts.
struct Parameters {
  std::string prompt, negative_prompt;
  std::vector<std::pair<std::string, std::string>> fields;  ///< in order
  std::vector<std::string> further;  ///< lines behind the settings, which mean nothing here

  std::string text() const;
  const std::string* find(const std::string& field) const;
};

/// Errors: c10::Error naming `source` if there is no line of settings in the text
Parameters parse_parameters(const std::string& text, const std::string& source);

/// What is drawn, for one picture of it.
struct DrawnPicture {
  int64_t width = 0, height = 0, index = 0, count = 1;
  uint64_t seed = 0;
};

/// The settings of one picture. The files in `loras` stand as tags behind the prompt, unless it has
/// them, so that A1111 finds its own files of these names.
Parameters describe(const GenerationOptions& options, const std::vector<sd::LoRAChoice>& loras,
                    const DrawnPicture& picture);

/// Names of schedulers and what A1111 calls them.
const std::vector<std::pair<std::string, std::string>>& sampler_names();

/// Several files as one value, "a; b", or as a JSON list where a name would be taken for two.
std::string file_list(const std::vector<std::string>& files);
std::vector<std::string> files_in_list(const std::string& text);

}  // namespace generation
