// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "research/pretraining/layout.h"

namespace pretraining {

/// A background colour that captions name.
struct NamedColor {
  const char* name;
  std::array<int, 3> rgb;
};

/// The twelve background colours.
const std::vector<NamedColor>& named_colors();

/// What an emoji is for. Order is that of the numbers in the file.
enum class Role {
  kNamed,    ///< drawn and named in the captions: the diffusion model's vocabulary
  kExtra,    ///< seen by the autoencoder only
  kUnseen,   ///< seen by no training: measures the autoencoder
  kSubject,  ///< seen by no training: the demo's subjects
};

/// The emoji of a data set with their names and roles, in one safetensors file.
struct EmojiSet {
  /// (N, 4, side, side) uint8, colours times alpha, and alpha.
  at::Tensor bitmaps;
  std::vector<std::string> names;
  std::vector<Role> roles;

  /// Indices of the emoji of any of these roles.
  std::vector<int64_t> with_roles(const std::vector<Role>& wanted) const;

  void save(const std::string& path) const;
  static EmojiSet load(const std::string& path);
};

/// Chooses the emoji that a configuration's `dataset` names out of a font.
/// Errors: c10::ValueError naming an emoji that is in none of the two files
EmojiSet make_emoji_set(const nlohmann::json& options, const std::string& font,
                        const std::string& names);

/// One picture and what it shows.
struct Sample {
  /// (3, size, size) uint8
  at::Tensor picture;
  int64_t emoji = 0;
  int64_t color = 0;
  std::string caption;
};

/// Draws emoji on flat named colours. A sample is a function of the seed and its index alone.
class Composer {
 public:
  /// `options` is the configuration's `dataset`: `size` of the pictures, `layouts` (layout.h) or
  /// `scale` of the only one, and `seed`; emoji are drawn from `choice` (indices into the set).
  Composer(EmojiSet emoji, std::vector<int64_t> choice, const nlohmann::json& options);

  /// From now on this share of the samples shows one of `others` in place of `choice`.
  void mix_in(std::vector<int64_t> others, double share);

  Sample sample(int64_t index);

  /// Samples first to first + count - 1 as (count, 3, size, size) fp32 in [-1, 1].
  at::Tensor batch(int64_t first, int64_t count, std::vector<std::string>* captions = nullptr);

  /// One emoji on one colour, as a caption without words for size and place has it.
  at::Tensor draw(int64_t emoji, int64_t color, std::mt19937_64& random, int64_t size);
  /// The same at a place and of a size.
  at::Tensor draw(int64_t emoji, int64_t color, const Placement& placement, std::mt19937_64& random,
                  int64_t size);

  const EmojiSet& emoji() const { return emoji_; }
  const std::vector<int64_t>& choice() const { return choice_; }
  const std::vector<Layout>& layouts() const { return layouts_; }
  int64_t size() const { return size_; }

 private:
  std::string caption(int64_t emoji, int64_t color, const Placement& placement,
                      std::mt19937_64& random) const;
  const at::Tensor& resized(int64_t emoji, int64_t side);

  EmojiSet emoji_;
  std::vector<int64_t> choice_, others_;
  double share_of_others_ = 0;
  int64_t size_;
  std::vector<Layout> layouts_;
  uint64_t seed_;
  double without_color_, with_made_up_word_, with_an_;
  std::unordered_map<int64_t, at::Tensor> resized_;
};

/// The emoji of a role whose names are plain words, so that captions can name them.
std::vector<int64_t> nameable(const EmojiSet& emoji, Role role);

/// Every caption that names an emoji of the set's vocabulary and a colour, and every other word
/// that captions use, for the tokenizer.
std::vector<std::string> all_captions(const EmojiSet& emoji, const nlohmann::json& options);

}  // namespace pretraining
