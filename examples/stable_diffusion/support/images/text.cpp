// SPDX-License-Identifier: Apache-2.0
#include "support/images/text.h"

#include <stb/stb_easy_font.h>
#include <utf8proc.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <sstream>

namespace images {

namespace {

/// One corner of a quadrilateral of stb_easy_font.
struct Vertex {
  float x, y, z;
  std::array<uint8_t, 4> colour;
};
static_assert(sizeof(Vertex) == 16, "stb_easy_font writes 16 bytes per corner");

constexpr int64_t kLineHeight = 12;

// "piñata" as "pinata", an ellipsis as three dots; as it is where it is no UTF-8.
std::string without_marks(const std::string& text) {
  utf8proc_uint8_t* raw = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &raw,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPAT |
                                                  UTF8PROC_DECOMPOSE | UTF8PROC_STRIPMARK));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  if (length <= 0) return text;
  return std::string(reinterpret_cast<const char*>(raw), static_cast<size_t>(length));
}

}  // namespace

std::string printable(const std::string& text) {
  std::string result;
  for (const char c : without_marks(text)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 && byte < 0xC0) continue;  // the rest of a character that already became '?'
    if (c == '\n' || c == '\t') {
      result += ' ';
    } else {
      result += byte >= 0x20 && byte < 0x7F ? c : '?';
    }
  }
  return result;
}

int64_t text_width(const std::string& line, int64_t factor) {
  std::string copy = line;  // stb_easy_font's parameters are not const
  return stb_easy_font_width(copy.data()) * factor;
}

int64_t line_height(int64_t factor) { return kLineHeight * factor; }

std::vector<std::string> wrap_text(const std::string& text, int64_t width, int64_t factor) {
  std::vector<std::string> lines;
  std::istringstream words(text);
  std::string word, line;
  while (words >> word) {
    const std::string longer = line.empty() ? word : line + " " + word;
    if (text_width(longer, factor) <= width) {
      line = longer;
      continue;
    }
    if (!line.empty()) lines.push_back(line);
    for (line.clear(); text_width(word, factor) > width;
         word.erase(0, line.size()), lines.push_back(line)) {
      line = word.substr(0, 1);
      while (text_width(word.substr(0, line.size() + 1), factor) <= width) {
        line = word.substr(0, line.size() + 1);
      }
    }
    line = word;
  }
  if (!line.empty()) lines.push_back(line);
  return lines;
}

void draw_text(Image& image, const std::string& line, int64_t left, int64_t top, int64_t factor,
               Colour colour) {
  std::string copy = line;
  // A character has at most 24 strokes of four corners.
  std::vector<Vertex> corners(copy.size() * 24 * 4 + 4);
  const int quads =
      stb_easy_font_print(/*x=*/0, /*y=*/0, copy.data(), /*color=*/nullptr, corners.data(),
                          static_cast<int>(corners.size() * sizeof(Vertex)));
  for (int i = 0; i < quads; ++i) {
    const Vertex &first = corners[4 * i], &opposite = corners[4 * i + 2];
    const auto x = std::lround(first.x), y = std::lround(first.y);
    fill(image, left + x * factor, top + y * factor, (std::lround(opposite.x) - x) * factor,
         (std::lround(opposite.y) - y) * factor, colour);
  }
}

}  // namespace images
