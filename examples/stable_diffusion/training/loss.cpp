// SPDX-License-Identifier: Apache-2.0
#include "training/loss.h"

#include <ATen/ATen.h>

#include <cmath>

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

// Both as sd-scripts has them; undefined: all alike.
Tensor DiffusionLoss::weights(const Tensor& timesteps) const {
  const Tensor snr = schedule_.snr(timesteps);
  const bool velocity = prediction_type() == sd::PredictionType::v_prediction;
  if (options_.debiased_estimation) {
    const Tensor limited = snr.clamp_max(1000);
    // Without any signal sd-scripts' weight is infinite; it counts as --snr_gamma has it.
    const Tensor weight =
        velocity ? 1 / (limited + 1) : limited.rsqrt().masked_fill(limited == 0, 1);
    return options_.snr_gamma ? weight * min_snr(snr) : weight;
  }
  return options_.snr_gamma ? min_snr(snr) : Tensor();
}

Tensor DiffusionLoss::huber_c(const Tensor& timesteps) const {
  const double c = options_.huber_c, scale = options_.huber_scale;
  const auto sizes = std::vector<int64_t>{timesteps.numel(), 1, 1, 1};
  if (options_.huber_schedule == HuberSchedule::constant) {
    return at::full(sizes, c * scale, at::kFloat);
  }
  if (options_.huber_schedule == HuberSchedule::exponential) {
    const double alpha = -std::log(c) / static_cast<double>(num_train_timesteps());
    return (at::exp(-alpha * timesteps.to(at::kFloat)) * scale).view(sizes);
  }
  const Tensor sigma = schedule_.snr(timesteps).rsqrt();
  return ((1 - c) / (1 + sigma).square() + c).view(sizes);
}

Tensor DiffusionLoss::min_snr(const Tensor& snr) const {
  const Tensor capped = snr.clamp_max(*options_.snr_gamma);
  if (prediction_type() == sd::PredictionType::sample) return capped;
  if (prediction_type() == sd::PredictionType::v_prediction) return capped / (snr + 1);
  // As sd-scripts writes it, so that an SNR of zero is no division of zero by zero.
  return (*options_.snr_gamma / snr).clamp_max(1);
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
  std::vector<Tensor> own_ids;
  for (const auto& t : ids) own_ids.push_back(t.clone());
  return {
      copy(noisy), copy(timesteps), copy(states),  {copy(added.text_embeds), copy(added.time_ids)},
      own_ids,     copy(target),    copy(weights), copy(huber_c),
      copy(mask),  smooth_l1};
}

void LossInputs::copy_from(const LossInputs& other) {
  const auto fill = [](Tensor& own, const Tensor& value) {
    if (own.defined()) own.copy_(value);
  };
  fill(noisy, other.noisy);
  fill(timesteps, other.timesteps);
  fill(states, other.states);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i].copy_(other.ids.at(i));
  fill(added.text_embeds, other.added.text_embeds);
  fill(added.time_ids, other.added.time_ids);
  fill(target, other.target);
  fill(weights, other.weights);
  fill(huber_c, other.huber_c);
  fill(mask, other.mask);
}

LossInputs DiffusionLoss::inputs(const std::vector<NoisySample>& samples,
                                 const sd::PromptEmbeds& text) const {
  const Tensor& states = text.states;
  std::vector<Tensor> latents, noises;
  std::vector<int64_t> timesteps;
  std::vector<Tensor> masks;
  bool masked = false;
  for (const auto& sample : samples) {
    masked = masked || sample.mask.defined();
    masks.push_back(sample.mask.defined() ? sample.mask
                                          : at::ones_like(sample.latents.slice(0, 0, 1)));
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
  if (const Tensor each = weights(times); each.defined()) result.weights = on_device(each);
  if (options_.type != LossType::l2) result.huber_c = on_device(huber_c(times));
  if (masked) result.mask = on_device(at::stack(masks));
  result.smooth_l1 = options_.type == LossType::smooth_l1;
  return result;
}

Tensor DiffusionLoss::of(sd::UNet2DConditionModel& unet, const LossInputs& inputs) {
  const Tensor predicted =
      unet->forward(inputs.noisy, inputs.timesteps, inputs.states, inputs.added).to(torch::kFloat);
  const bool squared = !inputs.huber_c.defined();
  if (squared && !inputs.weights.defined() && !inputs.mask.defined())
    return at::mse_loss(predicted, inputs.target);
  const auto& c = inputs.huber_c;
  Tensor values;
  if (squared) {
    values = at::mse_loss(predicted, inputs.target, at::Reduction::None);
  } else {
    values = 2 * (((predicted - inputs.target).square() + c.square()).sqrt() - c);
    if (!inputs.smooth_l1) values = c * values;
  }
  if (inputs.mask.defined()) values = values * inputs.mask;
  const Tensor each = values.flatten(1).mean(1);
  return (inputs.weights.defined() ? each * inputs.weights : each).mean();
}

}  // namespace training
