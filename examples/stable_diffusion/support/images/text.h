// SPDX-License-Identifier: Apache-2.0
// Small printed text for contact sheets.
#pragma once

#include <string>
#include <vector>

#include "support/images/image.h"

namespace images {

/// A text as it is drawn: letters without their marks, any other UTF-8 characters outside ASCII and
/// control characters as '?', a line feed or a tab as a space.
std::string printable(const std::string& text);

/// Width in pixels of one line of printable text; `factor` is the size of a font pixel.
int64_t text_width(const std::string& line, int64_t factor);

/// Height of a line of text, with the space to the next.
int64_t line_height(int64_t factor);

/// The words of a printable text in lines of at most `width` pixels; a longer word is cut.
std::vector<std::string> wrap_text(const std::string& text, int64_t width, int64_t factor);

/// Draws one line with its upper left corner at (left, top).
void draw_text(Image& image, const std::string& line, int64_t left, int64_t top, int64_t factor,
               Colour colour);

}  // namespace images
