// SPDX-License-Identifier: Apache-2.0
#include "training/loss.h"

#include <ATen/ATen.h>

namespace training {

using torch::Tensor;

NoisySample DiffusionLoss::draw(const Tensor& latents, at::Generator& generator) const {
  NoisySample sample;
  sample.latents = latents;
  sample.noise = at::randn(latents.sizes(), generator, torch::kFloat);
  sample.timestep =
      at::randint(num_train_timesteps(), {1}, generator, torch::kLong).item<int64_t>();
  if (options_.noise_offset != 0) {
    const Tensor shared = at::randn({latents.size(0), 1, 1}, generator, torch::kFloat);
    sample.noise = sample.noise + options_.noise_offset * shared;
  }
  return sample;
}

Tensor DiffusionLoss::weights(const Tensor& timesteps) const {
  const Tensor snr = schedule_.snr(timesteps);
  const Tensor capped = snr.clamp_max(*options_.snr_gamma);
  if (prediction_type() == sd::PredictionType::sample) return capped;
  const bool velocity = prediction_type() == sd::PredictionType::v_prediction;
  return capped / (velocity ? snr + 1 : snr);
}

Tensor DiffusionLoss::operator()(sd::UNet2DConditionModel& unet,
                                 const std::vector<NoisySample>& samples,
                                 const Tensor& states) const {
  std::vector<Tensor> latents, noises;
  std::vector<int64_t> timesteps;
  for (const auto& sample : samples) {
    latents.push_back(sample.latents);
    noises.push_back(sample.noise);
    timesteps.push_back(sample.timestep);
  }
  const Tensor x = at::stack(latents).to(states.device());
  const Tensor noise = at::stack(noises).to(states.device());
  const Tensor t = torch::tensor(timesteps, torch::kLong).to(states.device());
  const Tensor noisy = schedule_.add_noise(x, noise, t).to(states.scalar_type());
  const Tensor predicted = unet->forward(noisy, t, states).to(torch::kFloat);
  Tensor target = noise;
  if (prediction_type() == sd::PredictionType::v_prediction) {
    target = schedule_.get_velocity(x, noise, t);
  } else if (prediction_type() == sd::PredictionType::sample) {
    target = x;
  }
  if (!options_.snr_gamma) return at::mse_loss(predicted, target);
  const Tensor each = at::mse_loss(predicted, target, at::Reduction::None).flatten(1).mean(1);
  return (each * weights(t)).mean();
}

}  // namespace training
