// SPDX-License-Identifier: Apache-2.0
#include "training/batches.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>

#include "pipeline/device.h"
#include "support/cli/progress.h"

namespace training {

namespace {

constexpr int64_t kManyPictures = 16;  // worth a progress of their own
// Pixels that pass the autoencoder together: beyond that they keep a GPU busy one after the other,
// and take memory that a step does not need.
constexpr int64_t kPixelsTogether = 4 * 512 * 512;

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

LatentSource::LatentSource(ImageDataset dataset, sd::AutoencoderKL vae, bool cache, uint64_t seed,
                           int64_t together)
    : dataset_(std::move(dataset)),
      vae_(std::move(vae)),
      cache_(cache),
      together_(vae_->parameters()[0].is_cuda() ? together : 1),
      seed_(seed),
      scaling_factor_(vae_->options.scaling_factor()) {}

View LatentSource::cached_view(int64_t index, View view) const {
  if (!cache_ || dataset_.is_fixed(index)) return view;
  auto generator = generator_for(seed_, Stream::crop, index);
  View fixed = dataset_.draw_view(index, generator);
  fixed.flipped = view.flipped;
  return fixed;
}

size_t LatentSource::together(Size size) const {
  const int64_t few = kPixelsTogether / (size.width * size.height);
  return static_cast<size_t>(std::max<int64_t>(1, std::min(few, together_)));
}

// The distributions of pictures of one size.
std::vector<LatentSource::Moments> LatentSource::encode(const std::vector<Shown>& shown) {
  if (shown.empty()) return {};
  TORCH_CHECK(!vae_.is_empty(), "'", dataset_.file(shown[0].index).path,
              "': expected its latents in the cache, got none");
  const torch::NoGradGuard no_grad;
  const Tensor weight = vae_->parameters()[0];
  const size_t most = together(dataset_.sample_size(shown[0].index));
  std::vector<Moments> all;
  for (size_t begin = 0; begin < shown.size(); begin += most) {
    std::vector<Tensor> pixels;
    for (size_t i = begin; i < std::min(begin + most, shown.size()); ++i) {
      pixels.push_back(dataset_.pixels(shown[i].index, shown[i].view));
    }
    const Tensor pictures = sd::upload(at::stack(pixels), weight.device()).to(weight.dtype());
    const auto posterior = vae_->encode(pictures);
    // Read at once, as each reading waits for a GPU.
    const Tensor both =
        at::stack({posterior.mean(), posterior.std()}, 1).to(torch::kCPU, torch::kFloat);
    for (const Tensor& one : both.unbind()) all.emplace_back(one[0], one[1]);
  }
  return all;
}

// Those that are always the same are computed once.
std::vector<LatentSource::Moments> LatentSource::moments(const std::vector<Shown>& shown) {
  std::vector<Shown> missing;
  std::set<Key> coming;
  for (const auto& one : shown) {
    const bool there =
        keeps(one) && (cached_.count(one.key()) > 0 || !coming.insert(one.key()).second);
    if (!there) missing.push_back(one);
  }
  auto encoded = encode(missing);
  std::vector<Moments> fresh;
  for (size_t i = 0; i < missing.size(); ++i) {
    auto& [mean, deviation] = encoded[i];
    if (keeps(missing[i])) {
      cached_[missing[i].key()] = {mean.clone(), deviation.clone()};  // without the others' memory
    } else {
      fresh.push_back(encoded[i]);
    }
  }
  std::vector<Moments> all;
  size_t next = 0;
  for (const auto& one : shown) all.push_back(keeps(one) ? cached_.at(one.key()) : fresh[next++]);
  return all;
}

LatentSource::Sample LatentSource::sample(int64_t index, at::Generator& generator) {
  std::vector<at::Generator> generators{generator};
  return samples({index}, generators).front();
}

std::vector<LatentSource::Sample> LatentSource::samples(const std::vector<int64_t>& indices,
                                                        std::vector<at::Generator>& generators) {
  std::vector<Shown> shown;
  for (size_t i = 0; i < indices.size(); ++i) {
    const View drawn = dataset_.draw_view(indices[i], generators[i]);
    shown.push_back({indices[i], cached_view(indices[i], drawn)});
  }
  const auto all = moments(shown);
  std::vector<Sample> samples;
  for (size_t i = 0; i < shown.size(); ++i) {
    const auto& [mean, deviation] = all[i];
    const auto& [index, view] = shown[i];
    const Tensor noise = at::randn(mean.sizes(), generators[i], torch::kFloat);
    Sample sample{(mean + deviation * noise) * scaling_factor_, dataset_.time_ids(index, view)};
    if (const Tensor counts = dataset_.mask(index, view); counts.defined()) {
      sample.mask = at::adaptive_avg_pool2d(counts, {mean.size(1), mean.size(2)});
    }
    samples.push_back(std::move(sample));
  }
  return samples;
}

void LatentSource::encode_all() {
  TORCH_CHECK(cache_, "training::LatentSource: expected a cache to fill, got none");
  std::map<Size, std::vector<Shown>> by_size;
  int64_t all = 0, done = 0;
  for (int64_t i = 0; i < dataset_.size(); ++i) {
    for (const bool flipped : {false, true}) {
      if (flipped && !dataset_.flips(i)) continue;
      View view;
      view.flipped = flipped;
      by_size[dataset_.sample_size(i)].push_back({i, cached_view(i, view)});
      ++all;
    }
  }
  std::optional<cli::Progress> progress;
  if (all >= kManyPictures) progress.emplace("Encoding pictures", all);
  for (const auto& [size, shown] : by_size) {
    const size_t most = together(size);
    for (size_t begin = 0; begin < shown.size(); begin += most) {
      const auto end = std::min(begin + most, shown.size());
      moments({shown.begin() + static_cast<std::ptrdiff_t>(begin),
               shown.begin() + static_cast<std::ptrdiff_t>(end)});
      done += static_cast<int64_t>(end - begin);
      if (progress) progress->update(done);
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
    if (options.dropout_rate > 0 || options.dropout_every_n_epochs > 0) texts.insert("");
    if (options.varies()) continue;
    texts.insert(fixed_caption(latents_.dataset().caption(i, options_.prompt), options));
  }
  if (options_.caption_dropout_rate > 0) texts.insert("");
  return {texts.begin(), texts.end()};
}

std::string SampleSource::caption(int64_t picture, int64_t sample, int64_t epoch) const {
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
                         latents_.dataset().file(picture).caption_options, generator, epoch);
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

int64_t SampleSource::batches_per_epoch() const {
  const int64_t all = options_.batch_size * size_;
  return (std::max(samples_per_epoch(), options_.samples_per_epoch) + all - 1) / all;
}

TrainingBatch SampleSource::batch(int64_t index, const DiffusionLoss& loss) {
  const std::vector<int64_t> all = order_.batch(index);
  const auto own = all.begin() + rank_ * options_.batch_size;
  const std::vector<int64_t> pictures(own, own + options_.batch_size);
  const int64_t first = first_sample(index), epoch = index / batches_per_epoch() + 1;
  std::vector<at::Generator> generators;
  for (int64_t i = 0; i < options_.batch_size; ++i) {
    generators.push_back(generator_for(options_.seed, options_.sample, first + i));
  }
  const auto drawn = latents_.samples(pictures, generators);
  TrainingBatch batch;
  for (size_t i = 0; i < drawn.size(); ++i) {
    batch.samples.push_back(loss.draw(drawn[i].latents, generators[i]));
    batch.samples.back().time_ids = drawn[i].time_ids;
    batch.samples.back().mask = drawn[i].mask;
    batch.captions.push_back(caption(pictures[i], first + static_cast<int64_t>(i), epoch));
  }
  return batch;
}

}  // namespace training
