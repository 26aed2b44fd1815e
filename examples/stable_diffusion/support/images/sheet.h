// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "support/images/image.h"

namespace images {

/// A contact sheet: pictures in rows and columns with labels and a title.
struct Sheet {
  std::string title;
  std::vector<std::string> column_labels;  ///< none, or one per column
  std::vector<std::string> row_labels;     ///< none, or one per row
  /// The pictures row by row; rows may be short, and an empty Image leaves its place blank.
  std::vector<std::vector<Image>> rows;
};

/// Draws the sheet on a light background. Pictures whose longer side is under 100 pixels are
/// enlarged by whole factors (each pixel a square) to about 190; all have the same factor. Labels
/// are broken into lines; a character outside ASCII is shown as '?'.
/// Errors: c10::ValueError if there is no picture, or the labels do not fit the grid
Image draw_sheet(const Sheet& sheet);

}  // namespace images
