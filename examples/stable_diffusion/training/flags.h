// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/cli/app.h"
#include "training/adapters.h"
#include "training/class_pictures.h"
#include "training/common_flags.h"
#include "training/samples.h"

namespace training {

/// The flags of train_dreambooth_lora: diffusers' names and defaults where its script has them,
/// kohya's sd-scripts' for what only that has.
struct Flags : CommonFlags {
  std::string instance_data_dir, instance_prompt;
  std::vector<std::string> learned_embeds;

  bool with_prior_preservation = false;
  std::string class_data_dir, class_prompt, prior_generation_precision = "auto";
  int64_t num_class_images = 100, sample_batch_size = 4;
  double prior_loss_weight = 1;

  AdapterFlags adapter;

  bool pre_compute_text_embeddings = false;
  int64_t clip_skip = 0;
  std::string cuda_graph = "auto";

  Flags() { run.output_dir = "lora-dreambooth-model"; }

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
  c10::ScalarType prior_dtype() const;
  ClassPictureOptions class_pictures() const;
  TrainerOptions trainer_options() const;
  SampleOptions instance_samples() const;
  SampleOptions class_samples() const;
};

/// Puts the flags into the program's `--help` and reads them.
void add_flags(cli::App& app, Flags& flags);

}  // namespace training
