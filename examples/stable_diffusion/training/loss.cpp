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
  if (velocity) return capped / (snr + 1);
  // Where there is no signal at all both are 0: the limit is 1.
  return at::where(snr > 0, capped / snr, at::ones_like(snr));
}

namespace {

// (samples, 6)
Tensor sizes_of(const std::vector<NoisySample>& samples) {
  std::vector<Tensor> rows;
  for (const auto& sample : samples) {
    rows.push_back(torch::tensor(sample.time_ids, torch::kLong).to(torch::kFloat));
  }
  return at::stack(rows);
}

}  // namespace

LossInputs LossInputs::clone() const {
  const auto copy = [](const Tensor& t) { return t.defined() ? t.clone() : t; };
  return {copy(noisy),  copy(timesteps),
          copy(states), {copy(added.text_embeds), copy(added.time_ids)},
          copy(target), copy(weights)};
}

void LossInputs::copy_from(const LossInputs& other) {
  const auto fill = [](Tensor& own, const Tensor& value) {
    if (own.defined()) own.copy_(value);
  };
  fill(noisy, other.noisy);
  fill(timesteps, other.timesteps);
  fill(states, other.states);
  fill(added.text_embeds, other.added.text_embeds);
  fill(added.time_ids, other.added.time_ids);
  fill(target, other.target);
  fill(weights, other.weights);
}

LossInputs DiffusionLoss::inputs(const std::vector<NoisySample>& samples,
                                 const sd::PromptEmbeds& text) const {
  const Tensor& states = text.states;
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
  if (text.pooled.defined()) result.added = {text.pooled, on_device(sizes_of(samples))};
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
      unet->forward(inputs.noisy, inputs.timesteps, inputs.states, inputs.added).to(torch::kFloat);
  if (!inputs.weights.defined()) return at::mse_loss(predicted, inputs.target);
  const Tensor each =
      at::mse_loss(predicted, inputs.target, at::Reduction::None).flatten(1).mean(1);
  return (each * inputs.weights).mean();
}

}  // namespace training
