// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/layout.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace pretraining {

int64_t below(std::mt19937_64& random, int64_t count) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(count));
}

double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

std::vector<Layout> read_layouts(const nlohmann::json& dataset) {
  std::vector<Layout> layouts;
  const auto only = nlohmann::json::array({{{"scale", dataset.value("scale", nlohmann::json())}}});
  for (const auto& entry : dataset.value("layouts", only)) {
    Layout layout;
    layout.share = entry.value("share", 1.0);
    layout.least = entry.at("scale").at(0);
    layout.most = entry.at("scale").at(1);
    layout.size_word = entry.value("size_word", "");
    layout.size_said = entry.value("size_said", 0.0);
    layout.placed = entry.value("placed", false);
    layout.place_said = entry.value("place_said", 0.0);
    TORCH_CHECK_VALUE(0 < layout.least && layout.least <= layout.most && layout.most <= 1,
                      "dataset: expected scale to rise within (0, 1], got ", layout.least, " to ",
                      layout.most);
    TORCH_CHECK_VALUE(layout.share > 0, "dataset: expected a layout's share to be positive, got ",
                      layout.share);
    layouts.push_back(layout);
  }
  TORCH_CHECK_VALUE(!layouts.empty(), "dataset: expected layouts to have entries, got none");
  return layouts;
}

const std::vector<std::string>& place_phrases() {
  static const std::vector<std::string> phrases = {
      "in the top left",    "at the top",    "in the top right",
      "on the left",        "in the middle", "on the right",
      "in the bottom left", "at the bottom", "in the bottom right"};
  return phrases;
}

Placement place_by(const Layout& layout, int64_t size, std::mt19937_64& random) {
  Placement placement;
  const auto pixels = [&](double share) { return std::llround(share * static_cast<double>(size)); };
  const int64_t smallest = pixels(layout.least);
  placement.side = smallest + below(random, pixels(layout.most) - smallest + 1);
  if (layout.placed) {
    placement.place = below(random, static_cast<int64_t>(place_phrases().size()));
    placement.place_said = uniform(random) < layout.place_said;
  }
  if (layout.size_said > 0 && uniform(random) < layout.size_said)
    placement.size_word = layout.size_word;
  return placement;
}

const Layout& pick_layout(const std::vector<Layout>& layouts, std::mt19937_64& random) {
  if (layouts.size() == 1) return layouts.front();
  double sum = 0;
  for (const Layout& layout : layouts) sum += layout.share;
  double left = uniform(random) * sum;
  for (const Layout& layout : layouts) {
    left -= layout.share;
    if (left < 0) return layout;
  }
  return layouts.back();
}

int64_t edge_of(int64_t cell, int64_t side, int64_t size, std::mt19937_64& random) {
  const int64_t room = size - side;
  if (cell < 0) return below(random, room + 1);
  // So that a place is a place and not a single pixel.
  const int64_t play = std::min<int64_t>(room / 8, size / 32);
  const int64_t middle = cell == 1 ? room / 2 : (cell == 0 ? play / 2 : room - play / 2);
  const int64_t edge = middle - play / 2 + below(random, play + 1);
  return std::min(room, std::max<int64_t>(0, edge));
}

}  // namespace pretraining
