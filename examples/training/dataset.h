// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "images/image.h"
#include "images/resize.h"

namespace training {

/// How pictures become training samples, as diffusers' DreamBooth script does it: the shorter side
/// is resized to the resolution, then a square is cut out, at random unless `center_crop`.
struct DatasetOptions {
  int64_t resolution = 512;
  bool center_crop = false;
  images::Filter filter = images::Filter::kLanczos;
};

/// The pictures of one folder, decoded and resized once and kept in memory.
class ImageDataset {
 public:
  /// Errors: c10::Error if the folder is missing or holds no picture; a broken picture is an error
  ///         that names it. Files that are no pictures are passed over and listed by `skipped`.
  ImageDataset(const std::string& folder, const DatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(pictures_.size()); }
  const std::string& path(int64_t index) const { return paths_.at(static_cast<std::size_t>(index)); }
  /// Files of the folder that are no pictures.
  const std::vector<std::string>& skipped() const { return skipped_; }

  /// Whether every sample of this picture is the same.
  bool is_fixed(int64_t index) const;
  /// One sample: (3, resolution, resolution) in [-1, 1], fp32 on the CPU.
  torch::Tensor sample(int64_t index, at::Generator& generator) const;

 private:
  DatasetOptions options_;
  std::vector<std::string> paths_;
  std::vector<std::string> skipped_;
  std::vector<images::Image> pictures_;
};

}  // namespace training
