// SPDX-License-Identifier: Apache-2.0
#include "training/parameter_bank.h"

namespace training {

namespace {

std::vector<torch::Tensor> parameters_of(const std::vector<ParameterGroup>& groups) {
  std::vector<torch::Tensor> all;
  for (const auto& group : groups) {
    all.insert(all.end(), group.parameters.begin(), group.parameters.end());
  }
  return all;
}

}  // namespace

ParameterBank::ParameterBank(const std::vector<ParameterGroup>& groups)
    : lightlora::ParameterBank(parameters_of(groups)) {
  int64_t start = 0;
  for (const auto& group : groups) {
    if (group.parameters.empty()) continue;
    Slice slice{group.name, group.rate_factor, {}, {}, {}};
    int64_t count = 0;
    for (const auto& parameter : group.parameters) {
      slice.shapes.push_back(parameter.sizes().vec());
      count += parameter.numel();
    }
    slice.values = values().narrow(0, start, count);
    slice.gradients = gradients().narrow(0, start, count);
    slices_.push_back(std::move(slice));
    start += count;
  }
}

}  // namespace training
