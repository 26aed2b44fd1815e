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
  /// How many there are.
  int64_t runs() const;
};

/// Every rate with the first seed, the two best of them with all seeds; the better one is its own.
std::vector<Row> make_rows(Runner& runner, const Plan& plan);

/// The other ranks and bases of the rows that the study has.
void run_sweeps(Runner& runner, const Plan& plan, Study& study);

}  // namespace study
