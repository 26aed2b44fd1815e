// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "training/moving_average.h"
#include "training/optimizer.h"

namespace pretraining {

/// A module to train.
struct TrainedPart {
  torch::nn::Module& module;
  std::string prefix;      ///< of its parameters' names
  double rate_factor = 1;  ///< its learning rate over the run's
};

/// Weights of modules that compute in bf16 (or fp32) over fp32 values: the modules' parameters are
/// rounded copies, so that no layer casts a weight at every call, and updates below bf16's
/// resolution are not lost. Parameters that need no gradient stay as they are.
/// Equation: AdamW, or Muon for the weights that `by_muon` chooses; averages as MovingAverage
/// Memory:   four fp32 values a parameter: value, two moments (one with Muon), average, and the
///           gradient
class MasterWeights {
 public:
  struct Options {
    /// Weights whose names contain one of these step by Muon; convolutions count as matrices of
    /// their outputs.
    std::vector<std::string> by_muon;
    double beta2 = 0.99, weight_decay = 0.01;  ///< no decay for biases and the scales of norms
    double ema_decay = 0.998;                  ///< of the moving average
  };

  /// Takes over the parameters where they are, in `compute_dtype` from now on.
  MasterWeights(const std::vector<TrainedPart>& parts, at::ScalarType compute_dtype,
                const Options& options);

  /// The fp32 values as one tensor, and their gradients.
  training::ParameterBank& bank() { return *bank_; }
  const training::ParameterBank& bank() const { return *bank_; }
  /// Adds the parameters' gradients to those of the values, and drops them.
  void take_gradients();
  /// One update of values, averages and parameters.
  void step(double learning_rate);

  /// Writes the averages into the modules' parameters, or the trained values again.
  void use_averages() { write(averages_); }
  void use_values() { write(values_); }
  /// Averages under the names without the prefix, fp32, for the model's files.
  lightlora::TensorMap averages(const std::string& prefix) const;

  /// Values, averages and the optimisers' state.
  lightlora::TensorMap state() const;
  /// Errors: c10::Error if the state is not of these modules
  void load_state(const lightlora::TensorMap& state);

 private:
  void write(const std::vector<at::Tensor>& from);

  std::vector<std::string> names_, frozen_names_;
  std::vector<at::Tensor> parameters_, values_, averages_, frozen_;
  std::unique_ptr<training::ParameterBank> bank_;
  std::unique_ptr<training::MovingAverage> average_;  // of which `averages_` are views
  std::vector<std::unique_ptr<training::Optimizer>> optimizers_;
};

}  // namespace pretraining
