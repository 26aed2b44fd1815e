// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

namespace pretraining {

/// One emoji of Unicode's `emoji-test.txt`.
struct EmojiName {
  char32_t code_point;
  std::string name;
  std::string group, subgroup;
};

/// The fully qualified emoji of one code point each (skin tones, flags and families are sequences),
/// in the file's order.
/// Errors: c10::Error if the file is missing or has no such line
std::vector<EmojiName> read_emoji_names(const std::string& path);

/// The colour bitmaps of a font such as NotoColorEmoji.ttf, read through FreeType.
class ColorFont {
 public:
  /// Errors: c10::Error if the file is no font or has no colour bitmaps
  explicit ColorFont(const std::string& path);
  ~ColorFont();
  ColorFont(const ColorFont&) = delete;
  ColorFont& operator=(const ColorFont&) = delete;

  /// The bitmap of a code point in the middle of a square, or an undefined tensor if the font has
  /// none.
  /// Shapes: (4, side, side), red, green, blue (times alpha) and alpha.
  /// Dtypes: uint8
  at::Tensor bitmap(char32_t code_point) const;

  int64_t side() const { return side_; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int64_t side_ = 0;
};

}  // namespace pretraining
