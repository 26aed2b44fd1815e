// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>
#include <lightlora/options.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/app.h"
#include "training/dreambooth.h"

namespace training {

/// The flags of train_dreambooth_lora: diffusers' names and defaults where its script has them.
struct Flags {
  std::string model, instance_data_dir, instance_prompt;
  std::string output_dir = "lora-dreambooth-model";

  std::string variant = "light", init = "up_zero", aux_init = "orthogonal";
  int64_t rank = 4, aux_in = 100, aux_out = 50;
  uint64_t aux_seed = 0;
  std::optional<double> network_alpha;
  std::optional<int64_t> split_rank;
  std::vector<std::string> target_modules{"to_q", "to_k", "to_v", "to_out.0"};

  std::optional<int64_t> resolution;
  bool center_crop = false;
  std::string image_interpolation_mode = "lanczos";

  int64_t train_batch_size = 4, gradient_accumulation_steps = 1, num_train_epochs = 1;
  std::optional<int64_t> max_train_steps;
  std::optional<double> learning_rate;
  std::string lr_scheduler = "constant";
  int64_t lr_warmup_steps = 500;
  double lr_num_cycles = 1, lr_power = 1;
  AdamWOptions adam;
  double max_grad_norm = 1.0;

  uint64_t seed = 0;
  std::string mixed_precision = "no", device = "auto";

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
  /// Fills in what depends on the number of pictures and on the variant.
  void resolve_steps(int64_t pictures);
  /// Errors: c10::ValueError as LoRAOptions' parsers
  lightlora::LoRAOptions lora_options() const;
  c10::ScalarType weight_dtype() const;
  LearningRate schedule() const;
  DreamBoothOptions trainer_options() const;
};

/// Puts the flags into the program's `--help` and reads them.
void add_flags(cli::App& app, Flags& flags);

}  // namespace training
