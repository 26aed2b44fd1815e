// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "generation/options.h"
#include "pipeline/lora.h"
#include "support/cli/app.h"

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

/// What a PNG file asks for beside the options.
struct PngSettings {
  std::vector<std::string> lora_files;  ///< where the tags' files were, as FILE:WEIGHT
  std::vector<std::string> ignored;     ///< fields that mean nothing here
};

/// Sets the options that were not given on the command line from the "parameters" of a PNG file.
/// Errors: c10::Error if the file has none; c10::ValueError for a value that its flag refuses
PngSettings apply_png(const std::string& path, cli::App& app, GenerationOptions& options);

}  // namespace generation
