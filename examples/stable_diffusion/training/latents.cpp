// SPDX-License-Identifier: Apache-2.0
#include "training/latents.h"

#include <ATen/ATen.h>

#include "training/random.h"

namespace training {

using torch::Tensor;

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
  return {posterior.mean()[0].to(torch::kCPU, torch::kFloat),
          posterior.std()[0].to(torch::kCPU, torch::kFloat)};
}

Tensor LatentSource::sample(int64_t index, at::Generator& generator) {
  const View view = cached_view(index, dataset_.draw_view(index, generator));
  Moments fresh;
  const bool keep = cache_ || dataset_.is_fixed(index);
  Moments& own = keep ? cached_[{index, view.flipped}] : fresh;
  if (!own.first.defined()) own = moments(index, view);
  const Tensor noise = at::randn(own.first.sizes(), generator, torch::kFloat);
  return (own.first + own.second * noise) * scaling_factor_;
}

void LatentSource::encode_all() {
  TORCH_CHECK(cache_, "training::LatentSource: expected a cache to fill, got none");
  for (int64_t i = 0; i < dataset_.size(); ++i) {
    for (const bool flipped : {false, true}) {
      if (flipped && !dataset_.flips()) continue;
      View view;
      view.flipped = flipped;
      cached_[{i, flipped}] = moments(i, cached_view(i, view));
    }
  }
  vae_ = nullptr;
}

}  // namespace training
