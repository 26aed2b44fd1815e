// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "research/study/page.h"
#include "research/study/runner.h"

namespace study {

/// Which runs a study is made of.
struct Plan {
  std::vector<Variant> rows;  ///< the variants, and behind them the words without adapters
  std::vector<int64_t> ranks{1, 2, 8, 16}, split_ranks{1, 2, 4, 8, 16, 50};
  std::vector<std::pair<int64_t, int64_t>> sizes{{25, 12}, {50, 25}, {128, 100}};
  int64_t seeds = 1;

  Plan();
  /// Rows alone: those of `choose_rows`, without other ranks and bases.
  void only(const std::vector<std::string>& names);
  /// How many there are.
  int64_t runs() const;
};

/// The rows of these names: what the page calls one ("1 light, up zero"), a variant ("light", all its
/// rows), or a word ("word alone"). A variant of the library without a row of its own gets one, with
/// Classic's rates.
/// Errors: c10::ValueError with all names for another one, and for none with adapters
std::vector<Variant> choose_rows(const std::vector<std::string>& names);

/// Every rate with the first seed, the two best of them with all seeds; the better one is its own.
std::vector<Row> make_rows(Runner& runner, const Plan& plan);

/// The other ranks and bases of the rows that the study has.
void run_sweeps(Runner& runner, const Plan& plan, Study& study);

}  // namespace study
