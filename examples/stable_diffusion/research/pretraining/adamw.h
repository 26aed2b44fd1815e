// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/distributed/group.h"

namespace pretraining {

/// Trains a module that computes in bf16 (or fp32) over fp32 values: the module's parameters are
/// rounded copies of them, so no layer casts a weight at every call, and updates below bf16's
/// resolution are not lost.
/// Equation: AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), gradients scaled down to norm
///           `max_norm`; averages: ema = decay ema + (1 - decay) value
/// Memory:   four fp32 values a parameter: value, two moments, average
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.99;
    double weight_decay = 0.01;
    double epsilon = 1e-8;
    double max_norm = 1.0;
    double momentum = 0.95;  ///< of Muon
    /// Tensor operations in place of one pass over the memory; other devices than CPUs have only
    /// them.
    bool by_operations = false;
  };

  /// Takes over the parameters where they are, in `compute_dtype` from now on. `rate_scale`
  /// multiplies the learning rate of this module.
  void add(torch::nn::Module& module, const std::string& prefix, at::ScalarType compute_dtype,
           double rate_scale);

  /// Steps the weights whose names contain one of these by Muon in place of AdamW: the momentum
  /// orthogonalised, so that a step moves every direction of a matrix alike. Convolutions count as
  /// matrices of their outputs.
  /// Equation: value -= rate (0.2 sqrt(max(rows, columns)) orthogonalized(momentum) + decay value);
  ///           the factor gives the step AdamW's size (Liu et al. 2025, arXiv:2502.16982)
  void orthogonalize(const std::vector<std::string>& names);

  /// Gives all processes the values and the state of rank 0.
  void share(const distributed::Group& group);
  /// The mean of the gradients, and of the losses, over all processes; `stop` becomes true if it is
  /// so in any of them.
  void average_gradients(const distributed::Group& group, double& loss, bool& stop) const;

  /// One update from the parameters' gradients, which are dropped; step counts from 0. Parameters
  /// without a gradient stay as they are. Returns the gradients' norm.
  double step(int64_t step, double learning_rate, double ema_decay);

  /// Writes the averages into the modules' parameters, or the trained values again.
  void use_averages();
  void use_values();

  /// Averages under the names without the prefix, fp32, for the model's files.
  lightlora::TensorMap averages(const std::string& prefix) const;

  lightlora::TensorMap state() const;
  /// Errors: c10::Error if the state is not of these modules
  void load_state(const lightlora::SafetensorsFile& file);

  int64_t number_of_values() const;

  Options options;

 private:
  struct Slot {
    std::string name;
    at::Tensor parameter, value, first, second, average;
    double rate_scale;
    bool orthogonal = false;
  };
  double gradient_norm() const;
  void step_orthogonal(Slot& slot, double rate, double gradient_scale, double ema_decay);

  std::vector<Slot> slots_;
};

}  // namespace pretraining
