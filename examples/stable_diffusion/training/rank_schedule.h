// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <lightlora/patch.h>
#include <lightlora/train.h>

#include <cstdint>
#include <vector>

namespace training {

/// What single variants ask of a training loop about their ranks: T-LoRA the timestep of each sample,
/// AdaLoRA a choice after each step and a term of the loss. Other adapters ask for nothing.
class RankSchedule {
 public:
  /// `total_steps` are the run's, 0 if it has no end; timesteps go from 0 to `num_train_timesteps`.
  /// Errors: c10::ValueError for a budget that has no steps to take ranks away in
  RankSchedule(const std::vector<lightlora::Patched>& adapters, int64_t total_steps,
               int64_t num_train_timesteps);

  /// Whether each sample has ranks of its own, so that a batch is computed sample by sample.
  bool by_sample() const { return !by_timestep_.empty(); }
  /// The ranks for samples of this timestep, until `end`.
  void begin(int64_t timestep) const;
  /// All ranks count again.
  void end() const;

  /// What is added to a step's loss; undefined where there is nothing.
  torch::Tensor penalty() const;
  /// After a step of the optimiser, counted from 0.
  void step(int64_t step);

  /// What a checkpoint keeps.
  lightlora::TensorMap state() const;
  /// Errors: c10::Error if the state is of other adapters
  void load_state(const lightlora::TensorMap& state);

 private:
  std::vector<lightlora::Patched> by_timestep_, budgeted_;
  std::vector<lightlora::RankBudget> budgets_;  // of `budgeted_`, in this order
  int64_t num_train_timesteps_;
};

}  // namespace training
