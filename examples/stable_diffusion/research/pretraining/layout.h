// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

// Where in a picture an emoji is, how large, and the words for both.

namespace pretraining {

// std::uniform_int_distribution differs between standard libraries; data sets must not.
int64_t below(std::mt19937_64& random, int64_t count);
double uniform(std::mt19937_64& random);

/// A kind of picture: which sizes and places, and how often its caption says so.
struct Layout {
  double share = 1;                  ///< of all pictures
  double least = 0.75, most = 0.94;  ///< side of the emoji as a share of the frame
  std::string size_word;             ///< "small"; empty: none
  double size_said = 0;              ///< probability that the caption has it
  bool placed = false;               ///< in one of nine places; otherwise anywhere
  double place_said = 0;             ///< probability that the caption says which
};

/// The configuration's `layouts`, the one of captions without words first; or the one layout that
/// `scale` (least and most) stands for.
/// Errors: c10::ValueError for shares and scales that make no sense
std::vector<Layout> read_layouts(const nlohmann::json& dataset);

/// The nine places, row by row: "in the top left" to "in the bottom right".
const std::vector<std::string>& place_phrases();

/// One emoji's square in a picture.
struct Placement {
  int64_t side = 0;       ///< in pixels
  int64_t place = -1;     ///< of the nine; negative: anywhere
  std::string size_word;  ///< what the caption says; empty: nothing
  bool place_said = false;
};

/// Size, place and words of a picture of this layout, `size` pixels wide and high.
Placement place_by(const Layout& layout, int64_t size, std::mt19937_64& random);

/// One of the layouts, each as often as its share.
const Layout& pick_layout(const std::vector<Layout>& layouts, std::mt19937_64& random);

/// Left or top edge of an emoji of `side` pixels in a frame of `size`. `cell` is 0, 1 or 2 for the
/// beginning, the middle and the end, with a pixel or two of play; negative: anywhere.
int64_t edge_of(int64_t cell, int64_t side, int64_t size, std::mt19937_64& random);

}  // namespace pretraining
