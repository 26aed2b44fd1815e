// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/emoji.h"

#include <ATen/ATen.h>
#include <ft2build.h>

#include <fstream>
#include <regex>
#include FT_FREETYPE_H

namespace pretraining {

std::vector<EmojiName> read_emoji_names(const std::string& path) {
  std::ifstream file(path);
  TORCH_CHECK(file, "'", path, "': expected Unicode's emoji-test.txt, got no readable file",
              "; hint: apt-get install unicode-data");
  // "1F916 ; fully-qualified # <the emoji> E1.0 robot", with FE0F where text style is the default.
  static const std::regex line_form(
      "^([0-9A-F]+)( FE0F)? +; fully-qualified +# \\S+ E[0-9.]+ (.+)$");
  const std::string group_mark = "# group: ";
  std::vector<EmojiName> names;
  std::string line, group;
  while (std::getline(file, line)) {
    if (line.compare(0, group_mark.size(), group_mark) == 0) group = line.substr(group_mark.size());
    std::smatch match;
    if (!std::regex_match(line, match, line_form)) continue;
    const auto code_point = static_cast<char32_t>(std::stoul(match[1].str(), nullptr, 16));
    names.push_back({code_point, match[3].str(), group});
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
