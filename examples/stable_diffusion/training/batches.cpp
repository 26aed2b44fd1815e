// SPDX-License-Identifier: Apache-2.0
#include "training/batches.h"

#include <ATen/ATen.h>

#include <map>
#include <optional>
#include <set>

#include "support/cli/progress.h"

namespace training {

namespace {

constexpr int64_t kManyPictures = 16;  // worth a progress of their own

}  // namespace

using torch::Tensor;

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

LatentSource::LatentSource(ImageDataset dataset, sd::AutoencoderKL vae, bool cache, uint64_t seed)
    : dataset_(std::move(dataset)),
      vae_(std::move(vae)),
      cache_(cache),
      seed_(seed),
      scaling_factor_(vae_->options.scaling_factor()) {}

View LatentSource::cached_view(int64_t index, View view) const {
  if (!cache_ || dataset_.is_fixed(index)) return view;
  auto generator = generator_for(seed_, Stream::crop, index);
  View fixed = dataset_.draw_view(index, generator);
  fixed.flipped = view.flipped;
  return fixed;
}

LatentSource::Moments LatentSource::moments(int64_t index, const View& view) {
  TORCH_CHECK(!vae_.is_empty(), "'", dataset_.file(index).path,
              "': expected its latents in the cache, got none");
  const torch::NoGradGuard no_grad;
  const Tensor weight = vae_->parameters()[0];
  const Tensor pixels = dataset_.pixels(index, view).to(weight.device(), weight.dtype());
  const auto posterior = vae_->encode(pixels.unsqueeze(0));
  // Read at once, as each reading waits for a GPU.
  const Tensor both =
      at::stack({posterior.mean()[0], posterior.std()[0]}).to(torch::kCPU, torch::kFloat);
  return {both[0], both[1]};
}

LatentSource::Sample LatentSource::sample(int64_t index, at::Generator& generator) {
  const View view = cached_view(index, dataset_.draw_view(index, generator));
  Moments fresh;
  const bool keep = cache_ || dataset_.is_fixed(index);
  Moments& own = keep ? cached_[{index, view.flipped}] : fresh;
  if (!own.first.defined()) own = moments(index, view);
  const Tensor noise = at::randn(own.first.sizes(), generator, torch::kFloat);
  Sample sample{(own.first + own.second * noise) * scaling_factor_, dataset_.time_ids(index, view)};
  if (const Tensor counts = dataset_.mask(index, view); counts.defined()) {
    sample.mask = at::adaptive_avg_pool2d(counts, {own.first.size(1), own.first.size(2)});
  }
  return sample;
}

void LatentSource::encode_all() {
  TORCH_CHECK(cache_, "training::LatentSource: expected a cache to fill, got none");
  std::optional<cli::Progress> progress;
  if (dataset_.size() >= kManyPictures) progress.emplace("Encoding pictures", dataset_.size());
  for (int64_t i = 0; i < dataset_.size(); ++i) {
    if (progress) progress->update(i + 1);
    for (const bool flipped : {false, true}) {
      if (flipped && !dataset_.flips(i)) continue;
      View view;
      view.flipped = flipped;
      cached_[{i, flipped}] = moments(i, cached_view(i, view));
    }
  }
  if (progress) progress->finish();
  vae_ = nullptr;
}

SampleSource::SampleSource(LatentSource latents, SampleOptions options)
    : latents_(std::move(latents)),
      options_(std::move(options)),
      order_(latents_.dataset(), options_.batch_size, options_.seed, options_.order) {}

std::vector<std::string> SampleSource::captions() const {
  std::set<std::string> texts(options_.captions.begin(), options_.captions.end());
  for (int64_t i = 0; options_.captions.empty() && i < latents_.dataset().size(); ++i) {
    const auto& options = latents_.dataset().file(i).caption_options;
    if (options.dropout_rate > 0) texts.insert("");
    if (options.varies()) continue;
    auto generator = generator_for(options_.seed, Stream::caption, 0);
    auto always = options;
    always.dropout_rate = 0;
    texts.insert(
        process_caption(latents_.dataset().caption(i, options_.prompt), always, generator));
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
  return process_caption(latents_.dataset().caption(picture, options_.prompt),
                         latents_.dataset().file(picture).caption_options, generator);
}

bool SampleSource::captions_vary() const {
  const auto& dataset = latents_.dataset();
  for (int64_t i = 0; i < dataset.size(); ++i) {
    if (dataset.file(i).caption_options.varies()) return true;
  }
  return false;
}

void SampleSource::take_share(int64_t rank, int64_t size) {
  rank_ = rank;
  size_ = size;
  order_ =
      BatchOrder(latents_.dataset(), options_.batch_size * size, options_.seed, options_.order);
}

TrainingBatch SampleSource::batch(int64_t index, const DiffusionLoss& loss) {
  TrainingBatch batch;
  const std::vector<int64_t> pictures = order_.batch(index);
  int64_t sample = first_sample(index);
  for (int64_t i = 0; i < options_.batch_size; ++i) {
    const int64_t picture = pictures.at(static_cast<size_t>(rank_ * options_.batch_size + i));
    auto generator = generator_for(options_.seed, options_.sample, sample);
    const auto drawn = latents_.sample(picture, generator);
    batch.samples.push_back(loss.draw(drawn.latents, generator));
    batch.samples.back().time_ids = drawn.time_ids;
    batch.samples.back().mask = drawn.mask;
    batch.captions.push_back(caption(picture, sample++));
  }
  return batch;
}

}  // namespace training
