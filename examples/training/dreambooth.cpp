// SPDX-License-Identifier: Apache-2.0
#include "training/dreambooth.h"

#include <torch/nn/functional/loss.h>

#include <cmath>
#include <utility>

#include "training/random.h"

namespace training {

using torch::Tensor;

DreamBoothTrainer::DreamBoothTrainer(DreamBoothModels models, ImageDataset dataset,
                                     lightlora::Patched lora, LearningRate learning_rate,
                                     DreamBoothOptions options)
    : models_(std::move(models)),
      dataset_(std::move(dataset)),
      lora_(std::move(lora)),
      active_(lora_->activate()),
      learning_rate_(std::move(learning_rate)),
      options_(options),
      bank_(lora_->parameters()),
      optimizer_(bank_.values(), options.adam),
      scaler_(options.scale_loss, bank_.values().device()),
      fixed_moments_(static_cast<std::size_t>(dataset_.size())) {
  models_.unet->train();
}

int64_t DreamBoothTrainer::picture_of(int64_t sample) {
  const int64_t epoch = sample / dataset_.size();
  if (epoch != epoch_) {
    auto generator = generator_for(options_.seed, Stream::order, epoch);
    const Tensor order = torch::randperm(dataset_.size(), generator);
    order_.assign(order.data_ptr<int64_t>(), order.data_ptr<int64_t>() + order.numel());
    epoch_ = epoch;
  }
  return order_[static_cast<std::size_t>(sample % dataset_.size())];
}

Tensor DreamBoothTrainer::latents_of(int64_t picture, at::Generator& generator) {
  const torch::NoGradGuard no_grad;
  auto& [mean, std] = fixed_moments_[static_cast<std::size_t>(picture)];
  if (!mean.defined() || !dataset_.is_fixed(picture)) {
    const Tensor weight = models_.vae->parameters()[0];
    const Tensor pixels = dataset_.sample(picture, generator).to(weight.device(), weight.dtype());
    const auto posterior = models_.vae->encode(pixels.unsqueeze(0));
    mean = posterior.mean()[0].to(torch::kCPU, torch::kFloat);
    std = posterior.std()[0].to(torch::kCPU, torch::kFloat);
  }
  const Tensor noise = torch::randn(mean.sizes(), generator, torch::kFloat);
  return (mean + std * noise) * models_.vae->options.scaling_factor();
}

DreamBoothTrainer::Draw DreamBoothTrainer::draw(int64_t sample) {
  const int64_t picture = picture_of(sample);
  auto generator = generator_for(options_.seed, Stream::sample, sample);
  Draw result;
  result.latents = latents_of(picture, generator);
  result.noise = torch::randn(result.latents.sizes(), generator, torch::kFloat);
  result.timestep = torch::randint(models_.schedule.num_train_timesteps(), {1}, generator,
                                   torch::kLong)
                        .item<int64_t>();
  return result;
}

double DreamBoothTrainer::backward(int64_t first_sample) {
  std::vector<Tensor> latents, noise;
  std::vector<int64_t> timesteps;
  for (int64_t i = 0; i < options_.train_batch_size; ++i) {
    const Draw one = draw(first_sample + i);
    latents.push_back(one.latents);
    noise.push_back(one.noise);
    timesteps.push_back(one.timestep);
  }
  const auto device = models_.prompt_states.device();
  const auto dtype = models_.prompt_states.scalar_type();
  const Tensor x = torch::stack(latents).to(device);
  const Tensor e = torch::stack(noise).to(device);
  const Tensor t = torch::tensor(timesteps, torch::kLong).to(device);
  const Tensor states = models_.prompt_states.expand({options_.train_batch_size, -1, -1});
  const Tensor noisy = models_.schedule.add_noise(x, e, t).to(dtype);
  const Tensor predicted = models_.unet->forward(noisy, t, states);
  const Tensor target = models_.schedule.target(x, e, t);
  const Tensor loss = torch::mse_loss(predicted.to(torch::kFloat), target);
  const auto share = 1.0 / static_cast<double>(options_.gradient_accumulation_steps);
  scaler_.scaled(loss * share).backward();
  return loss.item<double>() * share;
}

StepReport DreamBoothTrainer::step() {
  StepReport report;
  bank_.zero_gradients();
  const int64_t batch = options_.train_batch_size;
  const int64_t first = done_ * batch * options_.gradient_accumulation_steps;
  for (int64_t i = 0; i < options_.gradient_accumulation_steps; ++i) {
    report.loss += backward(first + i * batch);
  }
  report.learning_rate = learning_rate_.at(done_);
  const bool finite = scaler_.unscale(bank_.gradients());
  TORCH_CHECK(std::isfinite(report.loss) && (finite || scaler_.enabled()),
              "training: step ", done_ + 1, ": expected a finite loss and gradient, got ",
              report.loss, "; hint: lower --learning_rate, or train in fp32 or bf16");
  report.skipped = !finite;
  if (finite) {
    bank_.clip(options_.max_grad_norm);
    optimizer_.step(bank_.values(), bank_.gradients(), report.learning_rate);
  }
  ++done_;
  return report;
}

}  // namespace training
