// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "generation/options.h"
#include "support/cli/app.h"

namespace generation {

/// Sets what the "parameters" of a PNG file say. There is one order: a flag on the command line
/// takes the place of the picture's setting of that name, and the picture's that of the default.
/// LoRA files are one setting: --lora, or tags in --prompt, take the place of all of the picture's;
/// another --prompt without tags leaves them as they are. Settings of the picture that cannot be
/// combined with a flag give way to it, and an axis of --xy counts as the flag of what it varies.
/// Returns the settings of the picture that are not used.
/// Errors: c10::Error if the file has none; c10::ValueError for a value that its flag refuses
std::vector<std::string> apply_png(const std::string& path, cli::App& app,
                                   GenerationOptions& options);

/// Does the work; what is wrong with a setting of the picture is said with the picture's name, as
/// what is wrong in a file, and not as a flag that nobody gave.
void naming_picture(const GenerationOptions& options, const std::function<void()>& work);

}  // namespace generation
