// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "pipeline/model_options.h"
#include "research/hypernetwork/network.h"
#include "research/hypernetwork/targets.h"
#include "support/cli/app.h"
#include "support/distributed/group.h"
#include "training/options.h"

namespace hypernetwork {

/// train_hypernetwork.
struct TrainOptions {
  sd::ModelOptions model;
  std::string identities_dir, validation_dir;  ///< no validation if the latter is empty
  std::string instance_prompt;
  std::optional<int64_t> resolution;  ///< default: the model's

  training::AdapterOptions adapter;
  int64_t adapter_rank = 1;
  /// Its layers and the latents' sizes follow from the model.
  HyperNetworkOptions network;
  TargetOptions targets;
  std::string targets_dir;                ///< default: in the output folder
  std::optional<uint64_t> target_seed;    ///< of what the adapters start from; default: `seed`
  std::optional<int64_t> num_identities;  ///< to learn from; default: all

  double weight_loss = 1, diffusion_loss = 1, prediction_penalty = 0, prediction_scale = 0.05;
  int64_t train_batch_size = 8, pictures_per_identity = 4, max_train_steps = 1000;
  double learning_rate = 5e-4;
  int64_t lr_warmup_steps = 50, lr_decay_steps = 300;
  bool gradient_checkpointing = false;

  std::string output_dir = "hypernetwork";
  int64_t checkpointing_steps = 200, validation_steps = 200;
  uint64_t seed = 0;
  std::string device = "auto";
  c10::ScalarType mixed_precision = c10::kFloat;  ///< of the frozen weights
  distributed::GroupOptions group;

  TrainOptions();

  std::string targets_folder() const {
    return targets_dir.empty() ? output_dir + "/targets" : targets_dir;
  }
  uint64_t adapter_seed() const { return target_seed.value_or(seed); }
  /// Errors: c10::ValueError for values that do not go together
  void check() const;
};

/// personalize.
struct PersonalizeOptions {
  sd::ModelOptions model;
  std::string hypernetwork, image;
  std::optional<std::string> instance_prompt;  ///< default: that of the hypernetwork's training
  int64_t max_train_steps = 40, rank = 4;
  std::optional<double> learning_rate;
  std::optional<int64_t> iterations;
  /// What to draw and how, as text_to_image has it; picture i has the seed `seed` + i.
  sd::SampleOptions sample;
  uint64_t seed = 0;
  bool new_seed = false;
  std::string output_dir = "personalized";
  bool overwrite_output_dir = false;
  std::string device = "auto";
  c10::ScalarType mixed_precision = c10::kFloat;

  PersonalizeOptions();

  /// Errors: c10::ValueError for values that do not go together; c10::Error without the picture
  void check() const;
};

/// All flags of a program.
void bind(cli::App& app, TrainOptions& options);
void bind(cli::App& app, PersonalizeOptions& options);

}  // namespace hypernetwork
