// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <utility>

#include "models/vae.h"
#include "training/dataset.h"

namespace training {

/// Latents of a data set's pictures, drawn anew from their distribution for each sample.
///
/// The distribution of a picture whose samples are all the same is computed once. With `cache` that
/// goes for every picture: its crop is drawn once, by seed, and the autoencoder is needed no more
/// after `encode_all`.
class LatentSource {
 public:
  LatentSource(ImageDataset dataset, sd::AutoencoderKL vae, bool cache, uint64_t seed);

  const ImageDataset& dataset() const { return dataset_; }
  /// One sample of a picture: (4, h, w) fp32 on the CPU, as the UNet knows latents.
  torch::Tensor sample(int64_t index, at::Generator& generator);
  /// Fills the cache and lets go of the autoencoder. Errors: c10::Error without `cache`
  void encode_all();

 private:
  using Moments = std::pair<torch::Tensor, torch::Tensor>;  // mean, standard deviation

  Moments moments(int64_t index, const View& view);
  View cached_view(int64_t index, View view) const;

  ImageDataset dataset_;
  sd::AutoencoderKL vae_;
  bool cache_;
  uint64_t seed_;
  double scaling_factor_;
  std::map<std::pair<int64_t, bool>, Moments> cached_;  // by picture and whether it is mirrored
};

}  // namespace training
