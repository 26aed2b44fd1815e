// SPDX-License-Identifier: Apache-2.0
#include "training/batches.h"

#include <ATen/ATen.h>

#include <map>

namespace training {

BatchOrder::BatchOrder(const ImageDataset& dataset, int64_t batch_size, uint64_t seed,
                       Stream stream)
    : batch_size_(batch_size), seed_(seed), stream_(stream), total_(dataset.samples_per_epoch()) {
  std::map<Size, std::vector<int64_t>> by_size;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    auto& samples = by_size[dataset.sample_size(i)];
    samples.insert(samples.end(), static_cast<size_t>(dataset.file(i).repeats), i);
  }
  for (auto& item : by_size) buckets_.push_back({std::move(item.second), 0, -1, {}});
}

size_t BatchOrder::furthest_behind() const {
  const auto behind = [&](const Bucket& bucket) {
    return static_cast<int64_t>(bucket.samples.size()) * (next_ + 1) - total_ * bucket.batches;
  };
  size_t best = 0;
  for (size_t i = 1; i < buckets_.size(); ++i) {
    if (behind(buckets_[i]) > behind(buckets_[best])) best = i;
  }
  return best;
}

int64_t BatchOrder::picture(size_t index, int64_t position) {
  Bucket& bucket = buckets_[index];
  const auto count = static_cast<int64_t>(bucket.samples.size());
  const int64_t epoch = position / count;
  if (epoch != bucket.epoch) {
    const auto stride = static_cast<int64_t>(buckets_.size());
    auto generator = generator_for(seed_, stream_, epoch * stride + static_cast<int64_t>(index));
    const torch::Tensor order = at::randperm(count, generator);
    bucket.order.assign(order.data_ptr<int64_t>(), order.data_ptr<int64_t>() + count);
    bucket.epoch = epoch;
  }
  const int64_t place = bucket.order[static_cast<size_t>(position % count)];
  return bucket.samples[static_cast<size_t>(place)];
}

std::vector<int64_t> BatchOrder::batch(int64_t index) {
  if (index < next_) {
    for (auto& bucket : buckets_) bucket.batches = 0;
    next_ = 0;
  }
  for (; next_ < index; ++next_) ++buckets_[furthest_behind()].batches;
  const size_t chosen = furthest_behind();
  std::vector<int64_t> pictures;
  for (int64_t i = 0; i < batch_size_; ++i) {
    pictures.push_back(picture(chosen, buckets_[chosen].batches * batch_size_ + i));
  }
  ++buckets_[chosen].batches;
  ++next_;
  return pictures;
}

}  // namespace training
