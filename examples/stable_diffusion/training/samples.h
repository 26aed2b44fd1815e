// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "training/batches.h"
#include "training/latents.h"
#include "training/loss.h"

namespace training {

/// One batch, ready for the loss.
struct TrainingBatch {
  std::vector<NoisySample> samples;
  std::vector<std::string> captions;
};

struct SampleOptions {
  int64_t batch_size = 4;
  uint64_t seed = 0;
  std::string prompt;            ///< the caption of pictures that have none of their own
  std::vector<std::string> captions;  ///< for each sample one of these instead, at random
  double caption_dropout_rate = 0;  ///< share of samples whose caption is left empty
  Stream order = Stream::order, sample = Stream::sample;
};

/// A data set as an endless row of batches. Batch j follows from the seed and j alone, and processes
/// that share a batch draw what one process would.
class SampleSource {
 public:
  SampleSource(LatentSource latents, SampleOptions options);

  TrainingBatch batch(int64_t index, const DiffusionLoss& loss);
  /// From now on a batch has `batch_size` samples for each of `size` processes, of which `batch`
  /// gives those of process `rank`.
  void take_share(int64_t rank, int64_t size);

  /// The number, in the endless row of samples, of the first one that `batch` gives.
  int64_t first_sample(int64_t index) const {
    return (index * size_ + rank_) * options_.batch_size;
  }
  int64_t batch_size() const { return options_.batch_size; }
  /// Everything that `batch` can give as a caption.
  std::vector<std::string> captions() const;
  LatentSource& latents() { return latents_; }
  int64_t samples_per_epoch() const { return latents_.dataset().samples_per_epoch(); }

 private:
  std::string caption(int64_t picture, int64_t sample) const;

  LatentSource latents_;
  SampleOptions options_;
  BatchOrder order_;
  int64_t rank_ = 0, size_ = 1;
};

}  // namespace training
