// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/train.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

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

}  // namespace training
