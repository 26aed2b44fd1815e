// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

// Optimising a few hundred small tensors as one: a step touches one buffer of values and one of
// gradients, so that AdamW, clipping and zeroing are one kernel each.

namespace training {

/// Parameters that share a learning rate.
struct ParameterGroup {
  std::string name;
  double rate_factor = 1;  ///< the group's learning rate over the run's
  std::vector<torch::Tensor> parameters;
};

/// Makes many leaf tensors views of one flat buffer, and their gradients views of another.
/// The tensors stay the same objects; a backward pass adds into the flat gradient.
class ParameterBank {
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

  const torch::Tensor& values() const { return values_; }
  const torch::Tensor& gradients() const { return gradients_; }
  const std::vector<Slice>& slices() const { return slices_; }
  void zero_gradients() { gradients_.zero_(); }

  /// Scales the gradients down so that their L2 norm is at most `max_norm`, and returns the norm
  /// they had as a tensor without dimensions: nothing waits for a GPU. No clipping if max_norm <= 0.
  torch::Tensor clip(double max_norm);

 private:
  torch::Tensor values_, gradients_;
  std::vector<Slice> slices_;
};

}  // namespace training
