// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "research/pretraining/adamw.h"
#include "support/distributed/group.h"

namespace pretraining {

/// Where a stage reads and writes, and what the program's flags say about it.
struct StageOptions {
  nlohmann::json config;
  std::string dataset_dir;
  std::string output_dir;
  /// Stop after this many steps in all (a later run goes on); negative: the configuration's number.
  int64_t stop_at = -1;
  /// Compute in bf16 over fp32 values; false: fp32 throughout.
  bool bf16 = true;
  bool channels_last = true;
  c10::Device device = at::kCPU;
  /// The processes that share every batch of the configuration.
  distributed::Group group;
};

/// What a stage does beyond stepping the optimiser.
struct StageWork {
  /// Forward and backward of this process's share of one step; returns the loss. All randomness
  /// comes from torch's default generator, which is seeded from the step, so a resumed run equals
  /// one without a pause.
  std::function<double(int64_t step)> step;
  /// Figures and pictures of the averaged model, for the log.
  std::function<nlohmann::json(int64_t step)> validate;
  /// Writes the model's folder from the averages.
  std::function<void()> save;
};

/// Learning rate at a step: warm-up, then cosine to zero, or constant and then linear to zero over
/// the last `decay_share` of the steps.
double learning_rate_at(const nlohmann::json& stage, int64_t step);

/// Runs a stage to its last step, to `stop_at`, or until Ctrl-C; goes on from
/// `<output_dir>/checkpoints/<name>.safetensors` if there is one. Appends to
/// `<output_dir>/logs/<name>.jsonl`. Returns the number of steps done in all.
int64_t run_stage(const std::string& name, const StageOptions& options, const nlohmann::json& stage,
                  AdamW& optimizer, const StageWork& work);

/// This process's rows of something that was drawn for a whole batch, so that any number of
/// processes trains on the same numbers.
at::Tensor share_of_batch(const distributed::Group& group, const at::Tensor& batch);

/// Makes `<path>` and all folders above it.
void make_folder(const std::string& path);

}  // namespace pretraining
