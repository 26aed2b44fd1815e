// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "generation/axes.h"
#include "generation/options.h"

namespace generation {

/// What is asked for is no slip of the keyboard, and no joke of whoever made the picture that
/// `from_png` names: sheets of at most 100 places, 16 million pixels in a picture, 100 pictures at
/// once and 1000 in all, prompts of 20,000 bytes. `allow_large` lifts these limits.
/// Errors: c10::ValueError, or c10::Error naming the picture that the settings are from
void check_limits(const GenerationOptions& options, const std::vector<Axis>& axes);

/// The same for the size of the picture to start from, which is the result's.
/// Errors: c10::Error naming the picture
void check_start(const GenerationOptions& options, int64_t width, int64_t height);

/// The files that will be written can be.
/// Errors: those of `sd::Outputs::check`
void check_outputs(const GenerationOptions& options);

/// "dir/cat.png" with "-0" is "dir/cat-0.png".
std::string with_suffix(const std::string& path, const std::string& suffix);

}  // namespace generation
