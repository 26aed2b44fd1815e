// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/emoji.h"

#include <ATen/ATen.h>
#include <ft2build.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include <lightlora/file_io.h>
#include FT_FREETYPE_H

namespace pretraining {

namespace {

// Takes `text` off the front of a line, or spaces for an empty one; false if it does not begin so.
bool take(std::string_view& line, std::string_view text) {
  if (text.empty()) {
    const auto spaces = line.find_first_not_of(' ');
    line.remove_prefix(std::min(spaces, line.size()));
    return spaces != 0;
  }
  if (line.substr(0, text.size()) != text) return false;
  line.remove_prefix(text.size());
  return true;
}

// "1F916 ; fully-qualified # <the emoji> E1.0 robot", with FE0F where text style is the default.
std::optional<EmojiName> read_emoji_line(std::string_view line) {
  uint32_t code_point = 0;
  const auto number =
      std::from_chars(line.data(), line.data() + line.size(), code_point, /*base=*/16);
  if (number.ec != std::errc() || code_point > 0x10FFFF) return std::nullopt;
  line.remove_prefix(static_cast<size_t>(number.ptr - line.data()));
  take(line, " FE0F");
  if (!take(line, "") || !take(line, "; fully-qualified") || !take(line, "") || !take(line, "# ")) {
    return std::nullopt;
  }
  const auto version = line.find(" E");  // behind the emoji itself
  const auto name = version == line.npos ? line.npos : line.find(' ', version + 2);
  if (name == line.npos || line.find_first_not_of("0123456789.", version + 2) != name ||
      name + 1 == line.size()) {
    return std::nullopt;
  }
  return EmojiName{static_cast<char32_t>(code_point), std::string(line.substr(name + 1)), "", ""};
}

}  // namespace

std::vector<EmojiName> read_emoji_names(const std::string& path) {
  TORCH_CHECK(std::filesystem::exists(path), "'", path,
              "': expected Unicode's emoji-test.txt, got no readable file",
              "; hint: apt-get install unicode-data");
  constexpr uint64_t kMostBytes = 16'000'000;
  std::istringstream file(lightlora::read_file(path, kMostBytes));
  const std::string group_mark = "# group: ", subgroup_mark = "# subgroup: ";
  std::vector<EmojiName> names;
  std::string line, group, subgroup;
  while (std::getline(file, line)) {
    if (line.compare(0, group_mark.size(), group_mark) == 0) group = line.substr(group_mark.size());
    if (line.compare(0, subgroup_mark.size(), subgroup_mark) == 0) {
      subgroup = line.substr(subgroup_mark.size());
    }
    auto emoji = read_emoji_line(line);
    if (!emoji) continue;
    emoji->group = group;
    emoji->subgroup = subgroup;
    names.push_back(std::move(*emoji));
  }
  TORCH_CHECK(!names.empty(), "'", path,
              "': expected Unicode's emoji-test.txt, got no emoji in it");
  return names;
}

struct ColorFont::Impl {
  FT_Library library = nullptr;
  FT_Face face = nullptr;
  ~Impl() {
    if (face) FT_Done_Face(face);
    if (library) FT_Done_FreeType(library);
  }
};

ColorFont::ColorFont(const std::string& path) : impl_(std::make_unique<Impl>()) {
  TORCH_CHECK(std::filesystem::is_regular_file(path), "'", path, "': expected a font, got ",
              std::filesystem::exists(path) ? "a folder, a device or a pipe" : "nothing there",
              "; hint: apt-get install fonts-noto-color-emoji");
  TORCH_CHECK(FT_Init_FreeType(&impl_->library) == 0,
              "FreeType: expected it to start, got an error");
  TORCH_CHECK(FT_New_Face(impl_->library, path.c_str(), /*face_index=*/0, &impl_->face) == 0, "'",
              path, "': expected a font, got no file that FreeType reads",
              "; hint: apt-get install fonts-noto-color-emoji");
  TORCH_CHECK(FT_HAS_COLOR(impl_->face) && impl_->face->num_fixed_sizes > 0, "'", path,
              "': expected a font with colour bitmaps (CBDT), got none; hint: NotoColorEmoji.ttf");
  FT_Select_Size(impl_->face, /*strike_index=*/0);
  const FT_Bitmap_Size& strike = impl_->face->available_sizes[0];
  side_ = std::max<int64_t>(strike.width, strike.height);
}

ColorFont::~ColorFont() = default;

at::Tensor ColorFont::bitmap(char32_t code_point) const {
  const FT_UInt glyph = FT_Get_Char_Index(impl_->face, code_point);
  if (glyph == 0 || FT_Load_Glyph(impl_->face, glyph, FT_LOAD_COLOR) != 0) return {};
  const FT_Bitmap& source = impl_->face->glyph->bitmap;
  if (source.pixel_mode != FT_PIXEL_MODE_BGRA || source.width == 0) return {};
  const int64_t width = source.width, height = source.rows;
  if (width > side_ || height > side_) return {};
  const int64_t left = (side_ - width) / 2, top = (side_ - height) / 2;
  at::Tensor result = at::zeros({4, side_, side_}, at::kByte);
  auto to = result.accessor<uint8_t, 3>();
  constexpr int64_t channel_of[4] = {2, 1, 0, 3};
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* row = source.buffer + y * source.pitch;
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < 4; ++c) to[channel_of[c]][top + y][left + x] = row[4 * x + c];
    }
  }
  return result;
}

}  // namespace pretraining
