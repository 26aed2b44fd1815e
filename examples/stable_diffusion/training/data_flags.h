// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "support/cli/app.h"
#include "training/dataset.h"

namespace training {

/// The flags that say how pictures become samples.
struct DataFlags {
  std::optional<int64_t> resolution, min_bucket_reso, max_bucket_reso, bucket_reso_steps;
  bool center_crop = false, random_flip = false, enable_bucket = false, cache_latents = false;
  std::string image_interpolation_mode = "lanczos";
  double caption_dropout_rate = 0, validation_split = 0;

  /// Errors: c10::ValueError for bucket flags without --enable_bucket
  void check() const;
  DatasetOptions dataset_options(int64_t model_resolution) const;
};

/// Puts the flags into `--help`, under a heading of their own, and reads them.
void add_data_flags(cli::App& app, DataFlags& flags);

}  // namespace training
