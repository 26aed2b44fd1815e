// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "support/cli/app.h"
#include "training/learning_rate.h"
#include "training/loss.h"
#include "training/optimizer.h"

namespace training {

/// The flags that say how long, how fast and on what loss to train.
struct OptimizationFlags {
  int64_t train_batch_size = 4, gradient_accumulation_steps = 1, num_train_epochs = 1;
  std::optional<int64_t> max_train_steps;
  bool gradient_checkpointing = false, batch_invariant = false;

  std::optional<double> learning_rate;
  bool scale_lr = false;
  std::string lr_scheduler = "constant";
  int64_t lr_warmup_steps = 500;
  double lr_num_cycles = 1, lr_power = 1;

  OptimizerOptions optimizer;
  std::string prodigy_use_bias_correction = "true", prodigy_safeguard_warmup = "true";
  double max_grad_norm = 1.0;

  std::optional<double> snr_gamma;
  double noise_offset = 0;
  std::string prediction_type = "auto";

  /// How many processes share the work; no flag.
  int64_t processes = 1;

  /// Samples of one update.
  int64_t total_batch_size() const {
    return train_batch_size * gradient_accumulation_steps * processes;
  }
  /// Updates of one pass over so many samples.
  int64_t steps_per_epoch(int64_t samples) const;
  /// Fills in the number of steps and the learning rate, and scales the latter if asked to.
  void resolve(int64_t samples_per_epoch, double usual_rate);
  /// After `resolve`.
  LearningRate schedule() const;
  LossOptions loss_options() const;
  OptimizerOptions optimizer_options() const;
};

void add_optimization_flags(cli::App& app, OptimizationFlags& flags);

}  // namespace training
