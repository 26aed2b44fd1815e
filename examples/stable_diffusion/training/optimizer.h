// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <lightlora/train.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/cli/choices.h"

namespace training {

/// Parameters that share a learning rate.
struct ParameterGroup {
  std::string name;
  double rate_factor = 1;  ///< the group's learning rate over the run's
  std::vector<torch::Tensor> parameters;
};

/// The library's bank over the parameters of all groups, one after the other.
class ParameterBank : public lightlora::ParameterBank {
 public:
  /// The part of the buffers that belongs to one group.
  struct Slice {
    std::string name;
    double rate_factor;
    torch::Tensor values, gradients;           // flat
    std::vector<std::vector<int64_t>> shapes;  // of the parameters, in order
  };

  /// Errors: c10::ValueError if there are none; c10::Error unless all have one dtype and device
  explicit ParameterBank(const std::vector<ParameterGroup>& groups);
  /// One group at the run's own rate.
  explicit ParameterBank(const std::vector<torch::Tensor>& parameters)
      : ParameterBank(std::vector<ParameterGroup>{{"all", 1, parameters}}) {}

  const std::vector<Slice>& slices() const { return slices_; }

 private:
  std::vector<Slice> slices_;
};

enum class OptimizerKind { adamw, adafactor, lion, prodigy, sgd };

/// Their names.
const cli::Choices<OptimizerKind>& optimizer_choices();

/// What the optimizers can be told; each takes what it knows.
struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::adamw;
  double beta1 = 0.9;            ///< adamw, lion, prodigy
  std::optional<double> beta2;   ///< the same; default: 0.999, lion 0.99
  std::optional<double> beta3;   ///< prodigy; default: the root of beta2
  std::optional<double> decay;   ///< weight decay; default: 0.01, adafactor and sgd none
  double epsilon = 1e-8;         ///< adamw, prodigy
  double momentum = 0.0;         ///< sgd
  double d_coef = 1.0;           ///< prodigy: factor of the rate that it finds
  bool bias_correction = true;   ///< prodigy
  bool safeguard_warmup = true;  ///< prodigy
};

/// One optimizer over one slice of a ParameterBank. Its state is tensors with names, which is all
/// that a checkpoint has to know.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// One update in place; all tensors flat and of one size.
  virtual void step(const torch::Tensor& values, const torch::Tensor& gradients,
                    double learning_rate) = 0;

  /// Copies of the state on the CPU, under names that begin with `prefix`.
  lightlora::TensorMap state(const std::string& prefix) const;
  /// Errors: c10::Error naming a tensor that is missing or of another size
  void load_state(const lightlora::TensorMap& state, const std::string& prefix);

 protected:
  /// Makes a tensor part of the state; it must from then on be changed in place.
  torch::Tensor track(const std::string& name, torch::Tensor value);

 private:
  std::vector<std::pair<std::string, torch::Tensor>> state_;
};

std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options,
                                          const ParameterBank::Slice& slice);

/// Paper: Loshchilov and Hutter 2017, arXiv:1711.05101. One fused kernel.
class AdamW : public Optimizer {
 public:
  AdamW(const torch::Tensor& values, const OptimizerOptions& options);
  void step(const torch::Tensor& values, const torch::Tensor& gradients,
            double learning_rate) override;

 private:
  OptimizerOptions options_;
  torch::Tensor first_moment_, second_moment_, steps_;
};

/// Second moments as a row and a column per matrix, hence almost no memory.
/// Paper: Shazeer and Stern 2018, arXiv:1804.04235, with a given learning rate and without
///        momentum, as transformers' Adafactor(scale_parameter=False, relative_step=False)
class Adafactor : public Optimizer {
 public:
  Adafactor(const ParameterBank::Slice& slice, const OptimizerOptions& options);
  void step(const torch::Tensor& values, const torch::Tensor& gradients,
            double learning_rate) override;

 private:
  struct Moments {
    std::vector<int64_t> shape;
    torch::Tensor row, column, full;  // either the first two or the last
  };
  torch::Tensor direction(Moments& moments, const torch::Tensor& gradient, double beta2) const;

  double decay_;
  std::vector<Moments> moments_;
  torch::Tensor steps_;
};

/// The sign of a momentum: wants a third to a tenth of AdamW's learning rate.
/// Paper: Chen et al. 2023, arXiv:2302.06675
class Lion : public Optimizer {
 public:
  Lion(const torch::Tensor& values, const OptimizerOptions& options);
  void step(const torch::Tensor& values, const torch::Tensor& gradients,
            double learning_rate) override;

 private:
  double beta1_, beta2_, decay_;
  torch::Tensor moment_;
};

/// Finds the learning rate itself; the one that it is given is a factor and should be 1.
/// Paper: Mishchenko and Defazio 2023, arXiv:2306.06101
class Prodigy : public Optimizer {
 public:
  Prodigy(const torch::Tensor& values, const OptimizerOptions& options);
  void step(const torch::Tensor& values, const torch::Tensor& gradients,
            double learning_rate) override;
  /// The learning rate found so far, before the factor.
  double d() const;

 private:
  torch::Tensor estimate(const torch::Tensor& values, const torch::Tensor& gradients,
                         const torch::Tensor& rate);

  OptimizerOptions options_;
  double beta2_, beta3_, decay_;
  torch::Tensor first_moment_, second_moment_, direction_sum_, start_;
  torch::Tensor numbers_;  // steps, d, largest d, numerator; fp64
};

/// Stochastic gradient descent with momentum; weight decay is part of the gradient, as torch's.
class SGD : public Optimizer {
 public:
  SGD(const torch::Tensor& values, const OptimizerOptions& options);
  void step(const torch::Tensor& values, const torch::Tensor& gradients,
            double learning_rate) override;

 private:
  double momentum_, decay_;
  torch::Tensor velocity_;
};

}  // namespace training
