// SPDX-License-Identifier: Apache-2.0
#include "training/optimization_flags.h"

namespace training {

namespace {

void add_length_flags(cli::App& app, OptimizationFlags& f) {
  app.group("Training");
  app.add_option("--train_batch_size", f.train_batch_size, "Pictures per step and device")
      ->check(cli::at_least(1));
  app.add_option("--gradient_accumulation_steps", f.gradient_accumulation_steps,
                 "Batches whose gradients are averaged for one update")
      ->check(cli::at_least(1));
  app.add_flag("--gradient_checkpointing", f.gradient_checkpointing,
               "Compute activations again in the backward pass: slower, in far less memory");
  app.add_flag("--batch_invariant", f.batch_invariant,
               "Compute the samples of a batch one by one: slower, but any number of processes that "
               "shares a batch learns the same bits");
  app.add_option("--max_train_steps", f.max_train_steps,
                 "Updates (default: as many as num_train_epochs needs)")
      ->check(cli::at_least(1));
  app.add_option("--num_train_epochs", f.num_train_epochs, "Passes over the pictures")
      ->check(cli::at_least(1));
  app.add_option("--snr_gamma", f.snr_gamma,
                 "Weight timesteps by min(snr, gamma) / snr; 5 is usual (default: all alike)")
      ->check(cli::above(0));
  app.add_option("--noise_offset", f.noise_offset,
                 "Size of noise that a whole channel shares, for very dark and bright pictures")
      ->check(cli::at_least(0));
  app.add_option("--prediction_type", f.prediction_type,
                 "What the model predicts; auto: what its scheduler's file says")
      ->check(cli::one_of({"auto", "epsilon", "v_prediction", "sample"}));
}

void add_rate_flags(cli::App& app, OptimizationFlags& f) {
  app.group("Learning rate");
  app.add_option("--learning_rate", f.learning_rate,
                 "Peak learning rate (default: 5e-4 for classic, 2e-3 for light and fused; 1 with "
                 "prodigy)")
      ->check(cli::above(0));
  app.add_flag("--scale_lr", f.scale_lr, "Multiply it by batch size, accumulation steps and processes");
  app.add_option("--lr_scheduler", f.lr_scheduler, "How the learning rate moves")
      ->check(cli::one_of(LearningRate::schedules()));
  app.add_option("--lr_warmup_steps", f.lr_warmup_steps, "Steps of rising rate (not for constant)")
      ->check(cli::at_least(0));
  app.add_option("--lr_num_cycles", f.lr_num_cycles, "Restarts of cosine_with_restarts");
  app.add_option("--lr_power", f.lr_power, "Power of polynomial");
}

void add_optimizer_flags(cli::App& app, OptimizationFlags& f) {
  app.group("Optimiser");
  app.add_option("--optimizer", f.optimizer.name, "Optimiser")
      ->check(cli::one_of(optimizer_names()));
  app.add_option("--adam_beta1", f.optimizer.beta1, "adamw, lion, prodigy: decay of the mean");
  app.add_option("--adam_beta2", f.optimizer.beta2,
                 "adamw, lion, prodigy: decay of the variance (default: 0.999, lion 0.99)");
  app.add_option("--adam_weight_decay", f.optimizer.decay,
                 "Weight decay (default: 0.01; adafactor and sgd 0)")
      ->check(cli::at_least(0));
  app.add_option("--adam_epsilon", f.optimizer.epsilon,
                 "adamw, prodigy: added to the root of the variance");
  app.add_option("--max_grad_norm", f.max_grad_norm, "Largest gradient norm; 0 switches it off");
  app.add_option("--sgd_momentum", f.optimizer.momentum, "sgd: share of the last direction kept");
  app.add_option("--prodigy_beta3", f.optimizer.beta3,
                 "prodigy: decay of what it finds the rate from (default: the root of beta2)");
  app.add_option("--prodigy_d_coef", f.optimizer.d_coef, "prodigy: factor of the rate it finds");
  app.add_option("--prodigy_use_bias_correction", f.prodigy_use_bias_correction,
                 "prodigy: Adam's bias correction")
      ->check(cli::one_of({"true", "false"}));
  app.add_option("--prodigy_safeguard_warmup", f.prodigy_safeguard_warmup,
                 "prodigy: leave the warm-up out of what it finds the rate from")
      ->check(cli::one_of({"true", "false"}));
}

}  // namespace

void add_optimization_flags(cli::App& app, OptimizationFlags& f) {
  add_length_flags(app, f);
  add_rate_flags(app, f);
  add_optimizer_flags(app, f);
}

int64_t OptimizationFlags::steps_per_epoch(int64_t samples) const {
  return (samples + total_batch_size() - 1) / total_batch_size();
}

void OptimizationFlags::resolve(int64_t samples_per_epoch, double usual_rate) {
  if (!max_train_steps) max_train_steps = num_train_epochs * steps_per_epoch(samples_per_epoch);
  if (!learning_rate) learning_rate = optimizer.name == "prodigy" ? 1.0 : usual_rate;
  if (scale_lr) *learning_rate *= static_cast<double>(total_batch_size());
  scale_lr = false;  // done, so that the resolved flags say what runs
}

LearningRate OptimizationFlags::schedule() const {
  return {lr_scheduler, *learning_rate, lr_warmup_steps, *max_train_steps, lr_num_cycles, lr_power};
}

OptimizerOptions OptimizationFlags::optimizer_options() const {
  OptimizerOptions options = optimizer;
  options.bias_correction = prodigy_use_bias_correction == "true";
  options.safeguard_warmup = prodigy_safeguard_warmup == "true";
  return options;
}

LossOptions OptimizationFlags::loss_options() const {
  LossOptions options;
  options.snr_gamma = snr_gamma;
  options.noise_offset = noise_offset;
  using Type = sd::PredictionType;
  if (prediction_type == "epsilon") options.prediction_type = Type::epsilon;
  if (prediction_type == "v_prediction") options.prediction_type = Type::v_prediction;
  if (prediction_type == "sample") options.prediction_type = Type::sample;
  return options;
}

}  // namespace training
