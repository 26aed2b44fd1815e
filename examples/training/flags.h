// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cli/app.h"
#include "cli/model_flags.h"
#include "distributed/group.h"
#include "training/adapters.h"
#include "training/class_pictures.h"
#include "training/data_flags.h"
#include "training/optimization_flags.h"
#include "training/run_flags.h"
#include "training/trainer.h"
#include "training/validation.h"

namespace training {

/// The flags of train_dreambooth_lora: diffusers' names and defaults where its script has them,
/// kohya's sd-scripts' for what only that has.
struct Flags : cli::ModelFlags {
  std::string instance_data_dir, instance_prompt;
  std::vector<std::string> learned_embeds;

  bool with_prior_preservation = false;
  std::string class_data_dir, class_prompt, prior_generation_precision = "auto";
  int64_t num_class_images = 100, sample_batch_size = 4;
  double prior_loss_weight = 1;

  DataFlags data;
  AdapterFlags adapter;
  OptimizationFlags optimization;
  RunFlags run;
  distributed::GroupOptions group;

  bool pre_compute_text_embeddings = false;
  int64_t clip_skip = 0;
  uint64_t seed = 0;
  std::string mixed_precision = "no", device = "auto", cuda_graph = "auto";

  Flags() { run.output_dir = "lora-dreambooth-model"; }

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
  c10::ScalarType weight_dtype() const;
  c10::ScalarType prior_dtype() const;
  ClassPictureOptions class_pictures() const;
  TrainerOptions trainer_options() const;
  SampleOptions instance_samples() const;
  SampleOptions class_samples() const;
};

/// Puts the flags into the program's `--help` and reads them.
void add_flags(cli::App& app, Flags& flags);

}  // namespace training
