// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "schedulers/noise_source.h"

// The noise of diffusion models: how much of it training adds, and how sampling takes it away.

namespace sd {

/// A scheduler's JSON file. Every scheduler reads from it what it knows under diffusers' names,
/// with the defaults of its own class, whatever class wrote the file: unknown keys are ignored, and
/// null and the keys listed in `_use_default_values` count as left out.
/// Errors: c10::ValueError naming the file, the key and what it should be
class SchedulerConfig {
 public:
  /// `source` is the file's name in messages.
  SchedulerConfig(nlohmann::json values, std::string source);

  int64_t integer(const std::string& key, int64_t otherwise) const;
  double number(const std::string& key, double otherwise) const;
  bool flag(const std::string& key, bool otherwise) const;
  /// One of the names in `known`.
  std::string text(const std::string& key, const std::string& otherwise,
                   const std::vector<std::string>& known) const;
  std::optional<std::vector<double>> numbers(const std::string& key) const;
  std::vector<int64_t> integers(const std::string& key) const;

  /// The same file with another value for one key.
  SchedulerConfig with(const std::string& key, nlohmann::json value) const;
  /// The same file with values for the keys that it leaves out.
  SchedulerConfig with_defaults(const nlohmann::json& values) const;

  const std::string& source() const { return source_; }
  const nlohmann::json& values() const { return values_; }

 private:
  const nlohmann::json* find(const std::string& key) const;
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

  nlohmann::json values_;
  std::string source_;
};

/// The SchedulerConfig in `<folder>/scheduler_config.json`.
SchedulerConfig read_scheduler_config(const std::string& folder);

/// What the model predicts: the noise, the clean sample, or v = sqrt(a) noise - sqrt(1 - a) sample.
enum class PredictionType { epsilon, sample, v_prediction };

/// How a clean sample becomes a noisy one, for training and as the base of every scheduler.
/// Equation: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise,  a = alphas_cumprod = cumprod(1 - betas)
/// Shapes:   samples and noise (B, ...), timesteps (B) int64 below num_train_timesteps
/// Dtypes:   coefficients in fp32, results in the samples' dtype
class NoiseSchedule {
 public:
  explicit NoiseSchedule(const SchedulerConfig& config);

  int64_t num_train_timesteps() const { return alphas_cumprod_.size(0); }
  PredictionType prediction_type() const { return prediction_type_; }
  /// (num_train_timesteps) fp32 on the CPU.
  const torch::Tensor& alphas_cumprod() const { return alphas_cumprod_; }

  torch::Tensor add_noise(const torch::Tensor& samples, const torch::Tensor& noise,
                          const torch::Tensor& timesteps) const;
  torch::Tensor get_velocity(const torch::Tensor& samples, const torch::Tensor& noise,
                             const torch::Tensor& timesteps) const;
  /// What the model should predict: noise, samples or the velocity.
  torch::Tensor target(const torch::Tensor& samples, const torch::Tensor& noise,
                       const torch::Tensor& timesteps) const;
  /// Signal-to-noise ratio a_t / (1 - a_t), (B) fp32.
  torch::Tensor snr(const torch::Tensor& timesteps) const;

 private:
  torch::Tensor at_timesteps(const torch::Tensor& table, const torch::Tensor& timesteps,
                             const torch::Tensor& like) const;

  torch::Tensor alphas_cumprod_;
  PredictionType prediction_type_;
};

struct StepOptions {
  /// DDIM's share of fresh noise, from 0 (none) to 1; the other schedulers ignore it.
  double eta = 0.0;
  /// Where fresh noise comes from.
  NoiseSource noise;
};

/// Takes the noise away step by step, from timesteps()[0] to the last one:
/// sample = noise * init_noise_sigma(); for each i: sample = step(model(scale_model_input(sample,
/// i), timesteps()[i]), i, sample, options). The steps have to be taken in order; a run over an
/// existing picture begins at a later one, with sample = add_noise(picture, noise, i).
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config) : schedule_(config) {}
  virtual ~Scheduler() = default;

  /// Errors: c10::ValueError if the number is below 1 or too large for the training steps
  virtual void set_timesteps(int64_t num_inference_steps) = 0;
  virtual double init_noise_sigma() const { return 1.0; }
  /// A clean sample with the noise that belongs to step `index`.
  virtual torch::Tensor add_noise(const torch::Tensor& clean, const torch::Tensor& noise,
                                  size_t index) const;
  virtual torch::Tensor scale_model_input(const torch::Tensor& sample, size_t index) const;
  virtual torch::Tensor step(const torch::Tensor& model_output, size_t index,
                             const torch::Tensor& sample, const StepOptions& options) = 0;

  /// What the model is told at each step; whole numbers for most schedulers.
  const std::vector<double>& timesteps() const { return timesteps_; }
  const NoiseSchedule& schedule() const { return schedule_; }

 protected:
  NoiseSchedule schedule_;
  std::vector<double> timesteps_;
};

/// A scheduler by name, over any scheduler's file.
/// Errors: c10::ValueError that lists the names if there is none of this name
std::unique_ptr<Scheduler> make_scheduler(const std::string& name, const SchedulerConfig& config);

/// The names that `make_scheduler` knows.
std::vector<std::string> scheduler_names();

/// Our name of the class that wrote a file, such as "euler" for EulerDiscreteScheduler.
/// Errors: c10::ValueError naming the file and the class if it is none of ours
std::string scheduler_of_class(const SchedulerConfig& config);

/// Whether `use_karras_sigmas` means something to the scheduler of this name.
bool knows_karras_sigmas(const std::string& name);

}  // namespace sd
