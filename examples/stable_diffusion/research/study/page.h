// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "research/study/experiment.h"
#include "research/study/file_sizes.h"

namespace study {

/// Everything about one variant.
struct Row {
  Variant variant;
  Runs tried;     ///< at each rate with the first seed, the described rate first
  Runs own;       ///< at its own rate, one for each seed
  Runs second{};  ///< at the second-best rate, likewise; empty if there is one rate only

  const Result& described() const { return tried.front(); }
  double own_rate() const { return own.front().rate; }
  /// All runs at a rate; none if it was not tried.
  Runs at(double rate) const;
  bool diverged() const { return any_diverged(own); }
  Spread loss() const { return loss_of(own); }
  Spread cosine() const { return cosine_of(own); }
};

/// Everything that was found out.
struct Study {
  Settings settings;
  ModelInfo model;
  std::vector<Row> rows;
  std::vector<Row> words;  ///< of no adapter
  std::vector<Runs> light_ranks, classic_ranks,
      basis_sizes;          ///< sweeps: the runs of one setting each
  double unsplit_loss = 0;  ///< of the core that `splits` cuts
  std::vector<Split> splits;
  std::vector<FileSize> sizes;  ///< for Stable Diffusion 1.5
  Shapes sd15_layers;

  /// A row by what it is, or null.
  const Row* find(const std::string& variant, const std::string& init = "up_zero",
                  const std::string& aux_init = "orthogonal") const;
};

/// What the described experiment found beside what was found here: a table in Markdown.
std::string findings(const Study& study);

/// Writes index.md, contact.png, curves.png and ranks.png into a folder.
void write_page(const Study& study, const std::string& folder);

/// A number for a table with so many digits behind the point, or -1: three digits in all; and a
/// mean with its spread.
std::string rounded(double value, int digits);
std::string with_spread(const Spread& value, int digits);

}  // namespace study
