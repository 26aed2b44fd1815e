// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "models/vae.h"
#include "training/data.h"
#include "training/loss.h"
#include "training/random.h"

// How a data set becomes batches: the order of its pictures, their latents, and the samples.

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

/// Latents of a data set's pictures, drawn anew from their distribution for each sample.
///
/// The distribution of a picture whose samples are all the same is computed once. With `cache` that
/// goes for every picture: its crop is drawn once, by seed, and the autoencoder is needed no more
/// after `encode_all`. On a GPU up to `together` pictures pass the autoencoder at a time: as many as a
/// step needs, so that this takes no more memory than the step's own batch asks for.
class LatentSource {
 public:
  LatentSource(ImageDataset dataset, sd::AutoencoderKL vae, bool cache, uint64_t seed,
               int64_t together = 1);

  const ImageDataset& dataset() const { return dataset_; }
  /// One sample of a picture.
  struct Sample {
    torch::Tensor latents;          ///< (4, h, w) fp32 on the CPU, as the UNet knows them
    std::vector<int64_t> time_ids;  ///< see ImageDataset::time_ids
    /// How much each place of the latents counts, (1, h, w), the mean over the pixels that it stands
    /// for; undefined: all in full.
    torch::Tensor mask = {};
  };
  Sample sample(int64_t index, at::Generator& generator);
  /// One of each picture, all of one size, each with the numbers of its own generator.
  std::vector<Sample> samples(const std::vector<int64_t>& indices,
                              std::vector<at::Generator>& generators);
  /// Fills the cache and lets go of the autoencoder.
  /// Errors: c10::Error without `cache`
  void encode_all();

 private:
  using Moments = std::pair<torch::Tensor, torch::Tensor>;  // mean, standard deviation
  using Key = std::pair<int64_t, bool>;                     // a picture, and whether it is mirrored
  struct Shown {
    int64_t index = 0;
    View view;
    Key key() const { return {index, view.flipped}; }
  };

  bool keeps(const Shown& shown) const { return cache_ || dataset_.is_fixed(shown.index); }
  size_t together(Size size) const;
  std::vector<Moments> moments(const std::vector<Shown>& shown);
  std::vector<Moments> encode(const std::vector<Shown>& shown);
  View cached_view(int64_t index, View view) const;

  ImageDataset dataset_;
  sd::AutoencoderKL vae_;
  bool cache_;
  int64_t together_;
  uint64_t seed_;
  double scaling_factor_;
  std::map<Key, Moments> cached_;
};

/// One batch, ready for the loss.
struct TrainingBatch {
  std::vector<NoisySample> samples;
  std::vector<std::string> captions;
};

struct SampleOptions {
  int64_t batch_size = 4;
  uint64_t seed = 0;
  std::string prompt;                 ///< the caption of pictures that have none of their own
  std::vector<std::string> captions;  ///< for each sample one of these instead, at random
  double caption_dropout_rate = 0;    ///< share of samples whose caption is left empty
  int64_t samples_per_epoch = 0;      ///< of the run, if they are more than the data set's
  Stream order = Stream::order, sample = Stream::sample;
};

/// A data set as an endless row of batches. Batch j follows from the seed and j alone, and
/// processes that share a batch draw what one process would.
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
  /// Everything that `batch` can give as a caption, apart from those that vary.
  std::vector<std::string> captions() const;
  /// Whether captions may read otherwise each time.
  bool captions_vary() const;
  LatentSource& latents() { return latents_; }
  int64_t samples_per_epoch() const { return latents_.dataset().samples_per_epoch(); }

 private:
  std::string caption(int64_t picture, int64_t sample, int64_t epoch) const;
  int64_t batches_per_epoch() const;

  LatentSource latents_;
  SampleOptions options_;
  BatchOrder order_;
  int64_t rank_ = 0, size_ = 1;
};

}  // namespace training
