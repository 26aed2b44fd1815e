// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/images/image.h"
#include "support/images/resize.h"
#include "training/buckets.h"
#include "training/data_folder.h"

namespace training {

/// How pictures become training samples, as diffusers' DreamBooth script does it: the shorter side
/// is resized to the resolution, then a square is cut out, at random unless `center_crop`. With
/// buckets a picture is resized to cover its bucket, and that is cut out instead of a square.
struct DatasetOptions {
  int64_t resolution = 512;
  bool center_crop = false;
  images::Filter filter = images::Filter::kLanczos;
  bool random_flip = false;  ///< mirror every second sample, at random
  std::optional<BucketOptions> buckets;
};

/// Which part of its picture a sample is.
struct View {
  int64_t left = 0, top = 0;
  bool flipped = false;
};

/// Pictures, decoded and resized once and kept in memory.
class ImageDataset {
 public:
  /// Errors: c10::Error naming the file if a picture is damaged or has vanished
  ImageDataset(std::vector<PictureFile> files, const DatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(pictures_.size()); }
  const PictureFile& file(int64_t index) const { return files_.at(static_cast<size_t>(index)); }
  /// What a picture shows: its own caption, or `otherwise`.
  std::string caption(int64_t index, const std::string& otherwise) const {
    return file(index).caption.value_or(otherwise);
  }
  /// Width and height of a picture's samples.
  Size sample_size(int64_t index) const { return sizes_.at(static_cast<size_t>(index)); }
  /// Samples in one pass: each picture as often as it repeats.
  int64_t samples_per_epoch() const;

  /// A number, in hexadecimal digits, that follows from the pictures' names, repeats, captions and
  /// samples: two data sets that differ in them differ in it.
  std::string fingerprint() const;

  /// Whether half of the samples are mirrored.
  bool flips() const { return options_.random_flip; }
  /// Whether every sample of this picture is the same, apart from being mirrored.
  bool is_fixed(int64_t index) const;
  /// The part of a picture that a sample shows; takes numbers from the generator only for what is
  /// left to chance.
  View draw_view(int64_t index, at::Generator& generator) const;
  /// One sample: (3, height, width) in [-1, 1], fp32 on the CPU.
  torch::Tensor pixels(int64_t index, const View& view) const;
  /// pixels(index, draw_view(index, generator))
  torch::Tensor sample(int64_t index, at::Generator& generator) const {
    return pixels(index, draw_view(index, generator));
  }

 private:
  DatasetOptions options_;
  std::vector<PictureFile> files_;
  std::vector<images::Image> pictures_;
  std::vector<Size> sizes_;
};

/// Takes `share` of the pictures, at least one, out of `files` at random (by seed) and returns them:
/// what a validation loss is measured on. Nothing if share is 0.
/// Errors: c10::ValueError if none would be left to train on
std::vector<PictureFile> split_off(std::vector<PictureFile>& files, double share, uint64_t seed);

}  // namespace training
