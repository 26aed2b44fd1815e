// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "support/images/image.h"

namespace study {

/// A line of a chart, from left to right.
struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

/// Lines over two linear axes, with the names at the right. Values above `top` are drawn at it.
struct Chart {
  std::string title, x_label, y_label;
  std::vector<Line> lines;
  double bottom = 0, top = 1;
};

/// Errors: c10::ValueError if there is no point, or `top` is not above `bottom`
images::Image draw_chart(const Chart& chart);

}  // namespace study
