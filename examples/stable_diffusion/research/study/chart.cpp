// SPDX-License-Identifier: Apache-2.0
#include "research/study/chart.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "support/cli/fmt.h"
#include "support/images/text.h"

namespace study {

namespace {

using images::Colour;
using images::Image;

constexpr int64_t kWidth = 1100, kHeight = 620, kLeft = 100, kRight = 330, kTop = 70, kBottom = 80;
constexpr int64_t kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
constexpr int64_t kGridLines = 5, kThickness = 3, kFactor = 2, kTitleFactor = 3;
constexpr Colour kPaper = {255, 255, 255}, kGrid = {225, 225, 225}, kInk = {40, 40, 46};
// Okabe and Ito's colours, which colour-blind people can tell apart.
constexpr Colour kColours[] = {{0, 114, 178},   {213, 94, 0},  {0, 158, 115}, {0, 0, 0},
                               {204, 121, 167}, {230, 159, 0}, {86, 180, 233}};

std::string number(double value) { return fmt::format("{:.3g}", value); }

void draw_segment(Image& image, double x0, double y0, double x1, double y1, Colour colour) {
  const auto count = static_cast<int64_t>(std::max(std::abs(x1 - x0), std::abs(y1 - y0))) + 1;
  for (int64_t i = 0; i <= count; ++i) {
    const double t = static_cast<double>(i) / static_cast<double>(count);
    images::fill(image, std::lround(x0 + t * (x1 - x0)) - kThickness / 2,
                 std::lround(y0 + t * (y1 - y0)) - kThickness / 2, kThickness, kThickness, colour);
  }
}

// From values to pixels.
struct Axes {
  const Chart& chart;
  double last = 0;

  double x(double value) const { return kLeft + value / last * static_cast<double>(kPlotWidth); }
  double y(double value) const {
    const double share = (value - chart.bottom) / (chart.top - chart.bottom);
    return kTop + (1 - std::clamp(share, 0.0, 1.0)) * static_cast<double>(kPlotHeight);
  }
};

void draw_grid(Image& image, const Axes& axes) {
  const Chart& chart = axes.chart;
  const auto text = [&](const std::string& line, double x, double y) {
    images::draw_text(image, line, std::lround(x), std::lround(y), kFactor, kInk);
  };
  for (int64_t i = 0; i <= kGridLines; ++i) {
    const double share = static_cast<double>(i) / kGridLines;
    const double value = chart.bottom + share * (chart.top - chart.bottom);
    images::fill(image, kLeft, std::lround(axes.y(value)), kPlotWidth, 1, kGrid);
    text(number(value), kLeft - 90, axes.y(value) - 8);
    text(number(share * axes.last), axes.x(share * axes.last) - 10, kTop + kPlotHeight + 12);
  }
  images::draw_text(image, chart.title, kLeft, 20, kTitleFactor, kInk);
  text(chart.x_label, kLeft + kPlotWidth / 2.0 - 40, kTop + kPlotHeight + 40);
  text(chart.y_label, 10, kTop - 24);
}

}  // namespace

Image draw_chart(const Chart& chart) {
  Axes axes{chart};
  for (const auto& line : chart.lines) {
    for (const auto& point : line.points) axes.last = std::max(axes.last, point.first);
  }
  TORCH_CHECK_VALUE(axes.last > 0 && chart.top > chart.bottom,
                    "study: expected points right of zero and an axis that rises, got none");
  Image image(kWidth, kHeight, kPaper);
  draw_grid(image, axes);
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    const auto& [name, points] = chart.lines[i];
    const Colour colour = kColours[i % std::size(kColours)];
    for (size_t k = 1; k < points.size(); ++k) {
      draw_segment(image, axes.x(points[k - 1].first), axes.y(points[k - 1].second),
                   axes.x(points[k].first), axes.y(points[k].second), colour);
    }
    const auto top = kTop + static_cast<int64_t>(i) * 30;
    images::fill(image, kWidth - kRight + 20, top + 6, 24, 5, colour);
    images::draw_text(image, name, kWidth - kRight + 52, top, kFactor, kInk);
  }
  return image;
}

}  // namespace study
