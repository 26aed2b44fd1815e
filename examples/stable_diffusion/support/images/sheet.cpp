// SPDX-License-Identifier: Apache-2.0
#include "support/images/sheet.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "support/images/text.h"

namespace images {

namespace {

constexpr Colour kBackground = {250, 250, 248}, kFrame = {214, 214, 210}, kBlank = {240, 240, 237};
constexpr Colour kTitle = {25, 25, 30}, kLabel = {70, 70, 78};
constexpr int64_t kMargin = 24, kGap = 12, kRowLabelWidth = 190, kWidestWord = 260;
constexpr int64_t kSmallSide = 100, kShownSide = 190;
constexpr int64_t kTitleFactor = 3, kLabelFactor = 2;
/// A title may make the sheet this much wider than its pictures before it is broken into lines.
constexpr int64_t kTitleWidth = 480;

using Lines = std::vector<std::string>;

/// Places and sizes on the sheet, in pixels.
struct Layout {
  int64_t columns = 0, rows = 0;
  int64_t factor = 1;
  int64_t cell_width = 0, cell_height = 0;
  int64_t left = kMargin, top = kMargin, width = 0, height = 0;
  Lines title;
  std::vector<Lines> column_labels, row_labels;

  int64_t x(int64_t column) const { return left + column * (cell_width + kGap); }
  int64_t y(int64_t row) const { return top + row * (cell_height + kGap); }
};

int64_t height_of(const Lines& lines, int64_t factor) {
  return static_cast<int64_t>(lines.size()) * line_height(factor);
}

/// Width of the longest word, up to a limit, so that few words have to be cut.
int64_t widest_word(const std::vector<std::string>& labels) {
  int64_t width = 0;
  for (const auto& label : labels) {
    std::istringstream words(printable(label));
    for (std::string word; words >> word;) {
      width = std::max(width, text_width(word, kLabelFactor));
    }
  }
  return std::min(width, kWidestWord);
}

std::vector<Lines> wrap_all(const std::vector<std::string>& labels, int64_t width) {
  std::vector<Lines> result;
  for (const auto& label : labels)
    result.push_back(wrap_text(printable(label), width, kLabelFactor));
  return result;
}

int64_t tallest(const std::vector<Lines>& labels) {
  int64_t height = 0;
  for (const auto& lines : labels) height = std::max(height, height_of(lines, kLabelFactor));
  return height;
}

/// The number of columns and rows and the size of a cell.
Layout measure_grid(const Sheet& sheet) {
  Layout layout;
  layout.rows = static_cast<int64_t>(sheet.rows.size());
  int64_t width = 0, height = 0;
  for (const auto& row : sheet.rows) {
    layout.columns = std::max(layout.columns, static_cast<int64_t>(row.size()));
    for (const auto& picture : row) {
      width = std::max(width, picture.width);
      height = std::max(height, picture.height);
    }
  }
  TORCH_CHECK_VALUE(width > 0, "images::draw_sheet: expected at least one picture, got none");
  const int64_t side = std::max(width, height);
  if (side < kSmallSide) layout.factor = std::max<int64_t>((kShownSide + side / 2) / side, 1);
  layout.cell_width = width * layout.factor;
  layout.cell_height = height * layout.factor;
  return layout;
}

Layout make_layout(const Sheet& sheet) {
  Layout layout = measure_grid(sheet);
  const auto fits = [](const std::vector<std::string>& labels, int64_t count) {
    return labels.empty() || static_cast<int64_t>(labels.size()) == count;
  };
  TORCH_CHECK_VALUE(
      fits(sheet.column_labels, layout.columns) && fits(sheet.row_labels, layout.rows),
      "images::draw_sheet: expected labels for ", layout.columns, " columns and ", layout.rows,
      " rows, got ", sheet.column_labels.size(), " and ", sheet.row_labels.size());
  layout.row_labels = wrap_all(sheet.row_labels, kRowLabelWidth);
  layout.cell_width = std::max(layout.cell_width, widest_word(sheet.column_labels));
  layout.column_labels = wrap_all(sheet.column_labels, layout.cell_width);
  if (!layout.row_labels.empty()) {
    int64_t widest = 0;
    for (const auto& lines : layout.row_labels) {
      layout.cell_height = std::max(layout.cell_height, height_of(lines, kLabelFactor));
      for (const auto& line : lines) widest = std::max(widest, text_width(line, kLabelFactor));
    }
    layout.left += widest + kGap;
  }
  const std::string title = printable(sheet.title);
  const int64_t title_width = std::min(text_width(title, kTitleFactor) + 1, kTitleWidth);
  layout.width = std::max(layout.x(layout.columns) - kGap, kMargin + title_width) + kMargin;
  layout.title = wrap_text(title, layout.width - 2 * kMargin - 1, kTitleFactor);
  if (!layout.title.empty()) layout.top += height_of(layout.title, kTitleFactor) + kGap;
  if (!layout.column_labels.empty()) layout.top += tallest(layout.column_labels) + kGap / 2;
  layout.height = layout.y(layout.rows) - kGap + kMargin;
  return layout;
}

void draw_labels(Image& sheet, const Layout& layout) {
  int64_t title_y = kMargin;
  for (const auto& line : layout.title) {
    for (const int64_t x : {kMargin, kMargin + 1}) {  // twice: bold
      draw_text(sheet, line, x, title_y, kTitleFactor, kTitle);
    }
    title_y += line_height(kTitleFactor);
  }
  for (std::size_t column = 0; column < layout.column_labels.size(); ++column) {
    const auto& lines = layout.column_labels[column];
    int64_t y = layout.top - kGap / 2 - height_of(lines, kLabelFactor);
    for (const auto& line : lines) {
      const int64_t rest = layout.cell_width - text_width(line, kLabelFactor);
      draw_text(sheet, line, layout.x(static_cast<int64_t>(column)) + rest / 2, y, kLabelFactor,
                kLabel);
      y += line_height(kLabelFactor);
    }
  }
  for (std::size_t row = 0; row < layout.row_labels.size(); ++row) {
    const auto& lines = layout.row_labels[row];
    int64_t y = layout.y(static_cast<int64_t>(row)) +
                (layout.cell_height - height_of(lines, kLabelFactor)) / 2;
    for (const auto& line : lines) {
      draw_text(sheet, line, layout.left - kGap - text_width(line, kLabelFactor), y, kLabelFactor,
                kLabel);
      y += line_height(kLabelFactor);
    }
  }
}

void draw_picture(Image& sheet, const Layout& layout, const Image& picture, int64_t row,
                  int64_t column) {
  const int64_t x = layout.x(column), y = layout.y(row);
  if (picture.empty()) {
    fill(sheet, x, y, layout.cell_width, layout.cell_height, kBlank);
    return;
  }
  const int64_t width = picture.width * layout.factor, height = picture.height * layout.factor;
  const int64_t left = x + (layout.cell_width - width) / 2,
                top = y + (layout.cell_height - height) / 2;
  fill(sheet, left - 1, top - 1, width + 2, height + 2, kFrame);
  paste(sheet, picture, left, top, layout.factor);
}

}  // namespace

Image draw_sheet(const Sheet& sheet) {
  const Layout layout = make_layout(sheet);
  Image result(layout.width, layout.height, kBackground);
  draw_labels(result, layout);
  for (int64_t row = 0; row < layout.rows; ++row) {
    const auto& pictures = sheet.rows[static_cast<std::size_t>(row)];
    for (int64_t column = 0; column < layout.columns; ++column) {
      const auto i = static_cast<std::size_t>(column);
      draw_picture(result, layout, i < pictures.size() ? pictures[i] : Image(), row, column);
    }
  }
  return result;
}

}  // namespace images
