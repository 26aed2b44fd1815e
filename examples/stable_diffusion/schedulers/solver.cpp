// SPDX-License-Identifier: Apache-2.0
#include "schedulers/solver.h"

#include <ATen/ATen.h>

#include <cmath>

namespace sd {

SolverScheduler::SolverScheduler(const SchedulerConfig& config, bool karras, bool round_karras)
    : Scheduler(config),
      karras_(karras || config.flag("use_karras_sigmas", false)),
      ends_at_zero_(config.text("final_sigmas_type", "zero", {"zero", "sigma_min"}) == "zero"),
      round_karras_(round_karras),
      spacing_(config.text("timestep_spacing", "linspace", {"leading", "linspace", "trailing"})),
      steps_offset_(config.integer("steps_offset", 0)),
      last_timestep_(schedule_.num_train_timesteps()),
      clip_(config, /*clips=*/std::nullopt) {
  for (const auto* key :
       {"use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"}) {
    TORCH_CHECK_VALUE(!config.flag(key, false), "'", config.source(), "': expected ", key,
                      " to be false, got true; hint: use_karras_sigmas is supported");
  }
}

void SolverScheduler::set_timesteps(int64_t n) {
  TORCH_CHECK_VALUE(n >= 1 && n < schedule_.num_train_timesteps(),
                    "--num_inference_steps: expected 1 to ", schedule_.num_train_timesteps() - 1,
                    ", got ", n);
  const auto table = training_sigmas(schedule_);
  if (karras_) {
    set_karras(table, n);
  } else {
    set_spaced(n);
    sigmas_.clear();
    for (const double timestep : timesteps_) sigmas_.push_back(interpolate(table, timestep));
  }
  sigmas_.push_back(ends_at_zero_ ? 0.0 : table.front());
  sigmas_ = to_float(sigmas_);
}

torch::Tensor SolverScheduler::add_noise(const torch::Tensor& clean, const torch::Tensor& noise,
                                         size_t index) const {
  const Level at = level(index);
  return at.signal * clean + at.spread * noise;
}

SolverScheduler::Level SolverScheduler::level(size_t index) const {
  const double sigma = sigmas_.at(index);
  const double signal = 1.0 / std::sqrt(sigma * sigma + 1.0);
  return {signal, sigma * signal, -std::log(sigma)};
}

torch::Tensor SolverScheduler::clean_sample(const torch::Tensor& model_output,
                                            const torch::Tensor& sample, size_t index) const {
  const double signal = level(index).signal;
  return clip_(predict(schedule_.prediction_type(), model_output, sample, signal * signal).sample);
}

void SolverScheduler::clip_lambda(const SchedulerConfig& config, double limit) {
  last_timestep_ = 0;
  for (const double sigma : training_sigmas(schedule_)) {
    if (-std::log(sigma) >= limit) ++last_timestep_;
  }
  TORCH_CHECK_VALUE(last_timestep_ == schedule_.num_train_timesteps() || spacing_ != "trailing",
                    "'", config.source(),
                    "': expected no lambda_min_clipped with trailing timesteps, got ", limit);
}

void SolverScheduler::set_karras(const std::vector<double>& table, int64_t n) {
  std::vector<double> logs;
  for (const double sigma : table) logs.push_back(std::log(sigma));
  logs = to_float(logs);
  sigmas_ = karras_sigmas(table.front(), table.back(), n);
  timesteps_.clear();
  for (const double sigma : sigmas_) {
    const double timestep = sigma_to_timestep(sigma, logs);
    timesteps_.push_back(round_karras_ ? std::nearbyint(timestep) : std::floor(timestep));
  }
}

void SolverScheduler::set_spaced(int64_t n) {
  if (spacing_ == "trailing") {
    timesteps_ = spaced_timesteps(spacing_, schedule_.num_train_timesteps(), n, steps_offset_);
    return;
  }
  // The smallest of n + 1 steps is where the last step ends.
  timesteps_ = spaced_timesteps(spacing_, last_timestep_, n + 1, steps_offset_);
  timesteps_.pop_back();
}

}  // namespace sd
