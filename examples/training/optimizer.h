// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/formats/safetensors.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

// Optimising a few hundred small tensors as one: a step touches one buffer of values and one of
// gradients, so that AdamW, clipping and zeroing are one kernel each.

namespace training {

/// Makes many leaf tensors views of one flat buffer, and their gradients views of another.
/// The tensors stay the same objects; a backward pass adds into the flat gradient.
class ParameterBank {
 public:
  /// Errors: c10::ValueError if there are none; c10::Error unless all have one dtype and device
  explicit ParameterBank(const std::vector<torch::Tensor>& parameters);

  const torch::Tensor& values() const { return values_; }
  const torch::Tensor& gradients() const { return gradients_; }
  void zero_gradients() { gradients_.zero_(); }

  /// Scales the gradients down so that their L2 norm is at most `max_norm`, and returns the norm
  /// they had as a tensor without dimensions: nothing waits for a GPU. No clipping if max_norm <= 0.
  torch::Tensor clip(double max_norm);

 private:
  torch::Tensor values_, gradients_;
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double weight_decay = 1e-2;
  double epsilon = 1e-8;
};

/// AdamW over one flat tensor. Paper: Loshchilov and Hutter 2017, arXiv:1711.05101
class AdamW {
 public:
  AdamW(const torch::Tensor& values, AdamWOptions options);

  /// One update in place.
  void step(const torch::Tensor& values, const torch::Tensor& gradients, double learning_rate);

  /// First and second moment and the step count, under names that begin with `prefix`.
  lightlora::TensorMap state(const std::string& prefix) const;
  void load_state(const lightlora::TensorMap& state, const std::string& prefix);

 private:
  AdamWOptions options_;
  torch::Tensor first_moment_, second_moment_, steps_;
};

/// Keeps fp16 gradients from vanishing: the loss is multiplied by a scale that halves when a
/// gradient overflows and doubles after 2000 steps without. Switched off it costs nothing.
class LossScaler {
 public:
  LossScaler(bool enabled, torch::Device device);

  bool enabled() const { return scale_.defined(); }
  /// loss * scale
  torch::Tensor scaled(const torch::Tensor& loss) const;
  /// Divides the gradients by the scale, adapts the scale, and says whether they are finite: if
  /// not, the step is to be left out. Without scaling the gradients are only looked at.
  bool unscale(const torch::Tensor& gradients);
  double scale() const;

 private:
  torch::Tensor scale_, growth_;
};

/// Learning rate schedules of diffusers' `get_scheduler`, as a factor of the base rate.
/// Errors of the constructor: c10::ValueError that lists the known names
class LearningRate {
 public:
  /// Names: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial.
  /// `cycles` and `power` are those of the last two.
  LearningRate(std::string schedule, double base, int64_t warmup_steps, int64_t total_steps,
               double cycles = 1, double power = 1);

  /// The rate of a step, counted from 0.
  double at(int64_t step) const;

  static const std::vector<std::string>& schedules();

 private:
  double factor(int64_t step) const;

  std::string schedule_;
  double base_;
  int64_t warmup_, total_;
  double cycles_, power_;
};

}  // namespace training
