// SPDX-License-Identifier: Apache-2.0
#include "training/data_flags.h"

#include <c10/util/Exception.h>

#include "support/images/resize.h"

namespace training {

void add_data_flags(cli::App& app, DataFlags& f) {
  app.group("Pictures");
  app.add_option("--resolution", f.resolution, "Side of the square crops (default: the model's)")
      ->check(cli::at_least(8));
  app.add_flag("--center_crop", f.center_crop, "Cut out the middle, not a random square");
  app.add_flag("--random_flip", f.random_flip, "Mirror every second sample, at random");
  app.add_option("--image_interpolation_mode", f.image_interpolation_mode, "Filter for resizing")
      ->check(cli::one_of({"lanczos", "bicubic", "bilinear"}));
  app.add_flag("--enable_bucket", f.enable_bucket,
               "Keep about the pictures' own shapes: aspect-ratio buckets instead of squares");
  app.add_option("--min_bucket_reso", f.min_bucket_reso,
                 "Shortest side of a bucket (default: half the resolution)")
      ->check(cli::at_least(8));
  app.add_option("--max_bucket_reso", f.max_bucket_reso,
                 "Longest side of a bucket (default: twice the resolution)")
      ->check(cli::at_least(8));
  app.add_option("--bucket_reso_steps", f.bucket_reso_steps,
                 "Sides of buckets are multiples of it, a multiple of 8 (default: an eighth of the "
                 "resolution)")
      ->check(cli::at_least(8));
  app.add_option("--caption_dropout_rate", f.caption_dropout_rate,
                 "Share of samples that train without a caption, 0 to 1")
      ->check(cli::between(0, 1));
  app.add_option("--validation_split", f.validation_split,
                 "Share of the pictures that are kept out of training, for the validation loss")
      ->check(cli::between(0, 1));
  app.add_flag("--cache_latents", f.cache_latents,
               "Encode each picture once, with one crop, and drop the autoencoder");
}

void DataFlags::check() const {
  TORCH_CHECK_VALUE(enable_bucket || (!min_bucket_reso && !max_bucket_reso && !bucket_reso_steps),
                    "--min_bucket_reso, --max_bucket_reso, --bucket_reso_steps: expected ",
                    "--enable_bucket beside them, got none");
  TORCH_CHECK_VALUE(!bucket_reso_steps || *bucket_reso_steps % 8 == 0,
                    "--bucket_reso_steps: expected a multiple of 8, got ", *bucket_reso_steps);
}

DatasetOptions DataFlags::dataset_options(int64_t model_resolution) const {
  DatasetOptions options;
  options.resolution = resolution.value_or(model_resolution);
  options.center_crop = center_crop;
  options.random_flip = random_flip;
  options.filter = images::filter_by_name(image_interpolation_mode);
  if (!enable_bucket) return options;
  BucketOptions buckets = BucketOptions::of(options.resolution);
  buckets.min_size = min_bucket_reso.value_or(buckets.min_size);
  buckets.max_size = max_bucket_reso.value_or(buckets.max_size);
  buckets.step = bucket_reso_steps.value_or(buckets.step);
  options.buckets = buckets;
  return options;
}

}  // namespace training
