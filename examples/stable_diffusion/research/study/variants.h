// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace study {

/// What a row learns if it has no adapters: a word, with vectors that are the same for all cross
/// attentions or each one's own.
constexpr const char* kPlainWord = "plain-word";
constexpr const char* kLayerwise = "layerwise-word";

/// One row of the study.
struct Variant {
  std::string name;  ///< what the page calls it
  std::string variant, init, aux_init;
  int64_t rank = 4;
  double described_rate = 2e-3;  ///< of the described experiment, the same for all
  /// Tried beside it; the one with the lowest validation loss in the end is the variant's own rate.
  std::vector<double> other_rates;
  std::optional<int64_t> split_rank = {};  ///< a Fused core is cut to this rank before it is used
  int64_t aux_in = 100, aux_out = 50;
  lightlora::OwnOptions own = {};  ///< further options that this kind of adapter has

  bool is_word() const { return variant == kPlainWord || variant == kLayerwise; }
};

/// The rows of a study that is asked for nothing else, in order. One more line is one more row of
/// every table, sheet and plot. A variant of the library that has no line here can be studied by its
/// name, see `choose_rows`.
inline const std::vector<Variant>& variants() {
  static const std::vector<Variant> rows{
      {"0 classic", "classic", "up_zero", "orthogonal", 4, 2e-3, {2e-4, 6e-4, 6e-3}},
      {"1 light, up zero", "light", "up_zero", "orthogonal", 4, 2e-3, {6e-3, 2e-2, 6e-2}},
      {"2 light, down zero", "light", "down_zero", "orthogonal", 4, 2e-3, {6e-3, 2e-2, 6e-2}},
      {"3 light, both zero", "light", "both_zero", "orthogonal", 4, 2e-3, {}},
      {"4 fused, split to 4", "fused", "up_zero", "orthogonal", 4, 2e-3, {6e-4, 6e-3, 2e-2}, 4},
      {"5 light, N(0,1) bases", "light", "up_zero", "normal", 4, 2e-3, {2e-5, 6e-5, 2e-4, 6e-4}},
      {"5s light, scaled N", "light", "up_zero", "normal_scaled", 4, 2e-3, {6e-3, 2e-2, 6e-2}},
  };
  return rows;
}

/// The words that are learned without adapters, at the rates of textual inversion.
inline const std::vector<Variant>& words() {
  static const std::vector<Variant> rows{
      {"word alone", kPlainWord, "", "", 0, 2e-2, {6e-3, 6e-2}, {}, 0, 0},
      {"layer-wise word alone", kLayerwise, "", "", 0, 2e-2, {6e-3, 6e-2}, {}, 0, 0},
  };
  return rows;
}

}  // namespace study
