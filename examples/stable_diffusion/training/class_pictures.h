// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/model_options.h"
#include "pipeline/pipeline.h"
#include "support/distributed/group.h"
#include "training/data.h"

namespace training {

struct ClassPictureOptions {
  std::string folder;
  std::string prompt;
  int64_t count = 100;  ///< how many the folder should hold
  int64_t batch_size = 4;
  uint64_t seed = 0;
  int64_t clip_skip = 0;   ///< as in training
  sd::ModelOptions model;  ///< for the pictures' texts
  int64_t steps = 50;
};

/// How many pictures the folder lacks.
int64_t missing_class_pictures(const ClassPictureOptions& options);

/// The class pictures to train on: as many as the options say, if the folder has more, as in
/// diffusers; a notice says so.
std::vector<PictureFile> read_class_pictures(const ClassPictureOptions& options);

/// Draws the pictures that the folder lacks, with the model as it is before training. Each is
/// written as soon as it is drawn, so that nothing is lost when it is interrupted, and its noise
/// follows from the seed and its number. The processes of the group draw an equal share each, into
/// one folder. Returns false if Ctrl-C came.
bool draw_class_pictures(sd::StableDiffusion& pipeline, const ClassPictureOptions& options,
                         const distributed::Group& group = {});

}  // namespace training
