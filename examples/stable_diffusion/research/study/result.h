// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace study {

/// How good adapters are.
struct Quality {
  double loss = 0;                    ///< validation loss of fixed noise
  double cosine = 0;                  ///< subject fidelity: mean cosine with the subject's emoji
  int64_t median_rank = 0;            ///< of the subject's emoji among all; 0 is best
  int64_t followed = 0, asked = 0;    ///< prompt fidelity: backgrounds as asked
  std::vector<std::string> pictures;  ///< files, one for each prompt
};

/// One finished run.
struct Result {
  std::string settings;  ///< what it depends on beside its name: another text, another run
  double rate = 0;
  int64_t rank = 0, aux_in = 0, aux_out = 0;
  int64_t trainable = 0, native_bytes = 0, exported_bytes = 0;
  double start_loss = 0;        ///< of the learned word alone
  double moved = 0;             ///< the largest change of a trained value
  double seconds_per_step = 0;  ///< median
  bool diverged = false;        ///< no longer finite; the quality then means nothing
  Quality quality;
  std::vector<std::pair<int64_t, double>> curve;  ///< validation loss after so many steps
};

/// A Fused core cut to a rank, without training again.
struct Split {
  int64_t rank = 0;
  double energy = 0;  ///< share of the squared singular values kept, over all layers
  int64_t exported_bytes = 0;
  Quality quality;
};

/// Follows from the bytes of a model's weights, in a folder or one file: another model may come to
/// lie under the same path.
std::string weights_fingerprint(const std::string& model);

/// What finished earlier with the same settings; nothing if there is none.
std::optional<Result> load_result(const std::string& path, const std::string& settings);
std::optional<std::vector<Split>> load_splits(const std::string& path, const std::string& settings);
/// Written whole or not at all.
void save_result(const std::string& path, const Result& result);
void save_splits(const std::string& path, const std::vector<Split>& splits,
                 const std::string& settings);

/// Mean and standard deviation of the sample, which one value does not have.
struct Spread {
  int64_t count = 0;
  double mean = 0, deviation = 0;
};
Spread spread(const std::vector<double>& values);

/// Of runs with several seeds; `followed_of` is the share of the backgrounds as asked.
using Runs = std::vector<Result>;
bool any_diverged(const Runs& runs);
Spread loss_of(const Runs& runs);
Spread cosine_of(const Runs& runs);
Spread followed_of(const Runs& runs);

}  // namespace study
