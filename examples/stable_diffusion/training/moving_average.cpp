// SPDX-License-Identifier: Apache-2.0
#include "training/moving_average.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>

namespace training {

namespace {

constexpr const char* kAverage = "average.values";
constexpr const char* kUpdates = "average.updates";
constexpr const char* kValues = "average.trained";

torch::Tensor copy_of(const torch::Tensor& values) {
  return values.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true);
}

torch::Tensor stored(const lightlora::TensorMap& state, const std::string& name,
                     const torch::Tensor& like) {
  const auto found = state.find(name);
  TORCH_CHECK(found != state.end() && found->second.numel() == like.numel() &&
                  found->second.scalar_type() == like.scalar_type(),
              "training: expected a tensor '", name, "' of ", like.numel(),
              " values in the state, got another or none; hint: the checkpoint is of another model "
              "or other adapters");
  return found->second.view_as(like);
}

}  // namespace

MovingAverage::MovingAverage(lightlora::ParameterBank& bank, double decay)
    : bank_(bank), decay_(decay), average_(bank.values().detach().clone()) {}

void MovingAverage::update() {
  const torch::NoGradGuard no_grad;
  const auto before = static_cast<double>(updates_++);
  const double decay = before == 0 ? 0 : std::min(decay_, (1 + before) / (10 + before));
  average_.lerp_(bank_.values(), 1 - decay);
}

MovingAverage::InPlace::InPlace(const MovingAverage& average)
    : bank_(average.bank_), values_(average.bank_.values().detach().clone()) {
  const torch::NoGradGuard no_grad;
  bank_.values().copy_(average.average_);
  bank_.changed();
}

MovingAverage::InPlace::~InPlace() {
  const torch::NoGradGuard no_grad;
  bank_.values().copy_(values_);
  bank_.changed();
}

lightlora::TensorMap MovingAverage::state() const {
  return {{kAverage, copy_of(average_)},
          {kUpdates, torch::tensor({updates_}, torch::kLong)},
          {kValues, copy_of(bank_.values())}};
}

void MovingAverage::load_state(const lightlora::TensorMap& state) {
  const torch::NoGradGuard no_grad;
  const auto updates = state.find(kUpdates);
  if (updates == state.end()) {
    average_.copy_(bank_.values());
    updates_ = 0;
    return;
  }
  TORCH_CHECK(updates->second.numel() == 1 && updates->second.scalar_type() == torch::kLong &&
                  updates->second.item<int64_t>() >= 0,
              "training: expected one number '", kUpdates, "' in the state, got something else");
  average_.copy_(stored(state, kAverage, average_));
  updates_ = updates->second.item<int64_t>();
}

void MovingAverage::restore_values(lightlora::ParameterBank& bank,
                                   const lightlora::TensorMap& state) {
  if (state.count(kValues) == 0) return;
  const torch::NoGradGuard no_grad;
  bank.values().copy_(stored(state, kValues, bank.values()));
  bank.changed();
}

}  // namespace training
