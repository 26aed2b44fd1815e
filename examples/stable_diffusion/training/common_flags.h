// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/cli/app.h"
#include "pipeline/model_flags.h"
#include "support/distributed/group.h"
#include "pipeline/pipeline.h"
#include "training/data_flags.h"
#include "training/data_folder.h"
#include "training/optimization_flags.h"
#include "training/run_flags.h"
#include "training/trainer.h"

namespace training {

/// What every trainer of pictures asks for, whatever it trains.
struct CommonFlags : sd::ModelFlags {
  DataFlags data;
  OptimizationFlags optimization;
  RunFlags run;
  distributed::GroupOptions group;

  uint64_t seed = 0;
  std::string mixed_precision = "no", device = "auto";
  bool allow_tf32 = false;
  // What diffusers asks for and what is so here anyway.
  bool enable_xformers_memory_efficient_attention = false;
  int64_t dataloader_num_workers = 0;

  c10::ScalarType weight_dtype() const;
  sd::StableDiffusionOptions pipeline_options(c10::ScalarType dtype) const;
  TrainerOptions trainer_options() const;
};

/// Puts --seed, --mixed_precision, --device and so on under the heading "Running".
void add_running_flags(cli::App& app, CommonFlags& flags);

/// The pictures of a folder, with a notice for everything else in it.
std::vector<PictureFile> read_with_notices(const std::string& folder);

}  // namespace training
