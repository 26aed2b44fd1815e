// SPDX-License-Identifier: Apache-2.0
#include "training/samples.h"

#include <ATen/ATen.h>

#include <set>

namespace training {

SampleSource::SampleSource(LatentSource latents, SampleOptions options)
    : latents_(std::move(latents)),
      options_(std::move(options)),
      order_(latents_.dataset(), options_.batch_size, options_.seed, options_.order) {}

std::vector<std::string> SampleSource::captions() const {
  std::set<std::string> texts(options_.captions.begin(), options_.captions.end());
  for (int64_t i = 0; options_.captions.empty() && i < latents_.dataset().size(); ++i) {
    texts.insert(latents_.dataset().caption(i, options_.prompt));
  }
  if (options_.caption_dropout_rate > 0) texts.insert("");
  return {texts.begin(), texts.end()};
}

std::string SampleSource::caption(int64_t picture, int64_t sample) const {
  auto generator = generator_for(options_.seed, Stream::caption, sample);
  if (options_.caption_dropout_rate > 0) {
    const double chance = at::rand({1}, generator, torch::kDouble).item<double>();
    if (chance < options_.caption_dropout_rate) return "";
  }
  const auto count = static_cast<int64_t>(options_.captions.size());
  if (count > 0) {
    const auto choice = at::randint(count, {1}, generator, torch::kLong).item<int64_t>();
    return options_.captions[static_cast<size_t>(choice)];
  }
  return latents_.dataset().caption(picture, options_.prompt);
}

void SampleSource::take_share(int64_t rank, int64_t size) {
  rank_ = rank;
  size_ = size;
  order_ = BatchOrder(latents_.dataset(), options_.batch_size * size, options_.seed, options_.order);
}

TrainingBatch SampleSource::batch(int64_t index, const DiffusionLoss& loss) {
  TrainingBatch batch;
  const std::vector<int64_t> pictures = order_.batch(index);
  int64_t sample = first_sample(index);
  for (int64_t i = 0; i < options_.batch_size; ++i) {
    const int64_t picture = pictures.at(static_cast<size_t>(rank_ * options_.batch_size + i));
    auto generator = generator_for(options_.seed, options_.sample, sample);
    const torch::Tensor latents = latents_.sample(picture, generator);
    batch.samples.push_back(loss.draw(latents, generator));
    batch.captions.push_back(caption(picture, sample++));
  }
  return batch;
}

}  // namespace training
