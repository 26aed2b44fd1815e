// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "training/dataset.h"
#include "training/random.h"

namespace training {

/// Which pictures each batch of a run holds. All batches are full and of one sample size.
///
/// Within a bucket (one sample size) the pictures flow past in passes, each in a new random order
/// and each picture as often as it repeats. The next batch comes from the bucket that is furthest
/// behind its share of the samples, so that every picture is seen equally often. Batch j follows
/// from the seed and j alone.
class BatchOrder {
 public:
  BatchOrder(const ImageDataset& dataset, int64_t batch_size, uint64_t seed, Stream stream);

  /// The pictures of a batch; asking in ascending order is fast.
  std::vector<int64_t> batch(int64_t index);

 private:
  struct Bucket {
    std::vector<int64_t> samples;  // one pass: pictures, repeated
    int64_t batches = 0;           // taken so far
    int64_t epoch = -1;            // the pass that `order` belongs to
    std::vector<int64_t> order;
  };

  size_t furthest_behind() const;
  int64_t picture(size_t bucket, int64_t position);

  int64_t batch_size_;
  uint64_t seed_;
  Stream stream_;
  std::vector<Bucket> buckets_;
  int64_t total_ = 0;  // samples of one pass
  int64_t next_ = 0;   // the batch that the counters stand at
};

}  // namespace training
