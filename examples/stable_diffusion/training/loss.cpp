// SPDX-License-Identifier: Apache-2.0
#include "training/loss.h"

#include <ATen/ATen.h>

#include "pipeline/device.h"

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

LossInputs DiffusionLoss::inputs(const std::vector<NoisySample>& samples,
                                 const Tensor& states) const {
  std::vector<Tensor> latents, noises;
  std::vector<int64_t> timesteps;
  for (const auto& sample : samples) {
    latents.push_back(sample.latents);
    noises.push_back(sample.noise);
    timesteps.push_back(sample.timestep);
  }
  // All of this is drawn and computed on the CPU and uploaded without waiting: the tables of the
  // schedule are there, and a GPU that has to wait for each upload is idle meanwhile.
  const Tensor x = at::stack(latents), noise = at::stack(noises);
  const Tensor times = torch::tensor(timesteps, torch::kLong);
  const auto on_device = [&](const Tensor& t) { return sd::upload(t, states.device()); };
  LossInputs result;
  result.timesteps = on_device(times);
  result.noisy = on_device(schedule_.add_noise(x, noise, times).to(states.scalar_type()));
  result.states = states;
  Tensor target = noise;
  if (prediction_type() == sd::PredictionType::v_prediction) {
    target = schedule_.get_velocity(x, noise, times);
  } else if (prediction_type() == sd::PredictionType::sample) {
    target = x;
  }
  result.target = on_device(target);
  if (options_.snr_gamma) result.weights = on_device(weights(times));
  return result;
}

Tensor DiffusionLoss::of(sd::UNet2DConditionModel& unet, const LossInputs& inputs) {
  const Tensor predicted =
      unet->forward(inputs.noisy, inputs.timesteps, inputs.states).to(torch::kFloat);
  if (!inputs.weights.defined()) return at::mse_loss(predicted, inputs.target);
  const Tensor each =
      at::mse_loss(predicted, inputs.target, at::Reduction::None).flatten(1).mean(1);
  return (each * inputs.weights).mean();
}

}  // namespace training
