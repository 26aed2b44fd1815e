// SPDX-License-Identifier: Apache-2.0
#include "training/rank_schedule.h"

#include <lightlora/variants/adalora.h>
#include <lightlora/variants/tlora.h>

#include <string>

#include "support/cli/fmt.h"

namespace training {

namespace {

constexpr double kOrthogonality = 0.5;  // PEFT's orth_reg_weight

// Norms and biases may train beside any variant.
bool all_are(const lightlora::Patched& lora, const char* variant) {
  bool any = false;
  for (const auto& adapter : lora->adapters()) {
    if (adapter->layer().is_vector()) continue;
    if (adapter->variant() != variant) return false;
    any = true;
  }
  return any;
}

std::string budget_prefix(std::size_t budget) { return fmt::format("ranks.{}.", budget); }

}  // namespace

RankSchedule::RankSchedule(const std::vector<lightlora::Patched>& adapters, int64_t total_steps,
                           int64_t num_train_timesteps)
    : num_train_timesteps_(num_train_timesteps) {
  for (const auto& lora : adapters) {
    if (all_are(lora, lightlora::TLoRAAdapterImpl::kVariant)) by_timestep_.push_back(lora);
    if (!all_are(lora, lightlora::AdaLoRAAdapterImpl::kVariant)) continue;
    budgeted_.push_back(lora);
    if (total_steps > 0) budgets_.emplace_back(lora, total_steps);
  }
}

void RankSchedule::begin(int64_t timestep) const {
  for (const auto& lora : by_timestep_) {
    lightlora::set_timestep(lora, timestep, num_train_timesteps_);
  }
}

void RankSchedule::end() const {
  for (const auto& lora : by_timestep_) lightlora::clear_timestep(lora);
}

torch::Tensor RankSchedule::penalty() const {
  torch::Tensor sum;
  for (const auto& lora : budgeted_) {
    const torch::Tensor own = kOrthogonality * lightlora::orthogonality(lora);
    sum = sum.defined() ? sum + own : own;
  }
  return sum;
}

void RankSchedule::step(int64_t step) {
  for (auto& budget : budgets_) budget.step(step);
}

lightlora::TensorMap RankSchedule::state() const {
  lightlora::TensorMap state;
  for (std::size_t i = 0; i < budgets_.size(); ++i) {
    for (const auto& [name, value] : budgets_[i].state()) state[budget_prefix(i) + name] = value;
  }
  return state;
}

void RankSchedule::load_state(const lightlora::TensorMap& state) {
  for (std::size_t i = 0; i < budgets_.size(); ++i) {
    const std::string prefix = budget_prefix(i);
    lightlora::TensorMap own;
    for (const auto& [name, value] : state) {
      if (name.rfind(prefix, 0) == 0) own[name.substr(prefix.size())] = value;
    }
    budgets_[i].load_state(own);
  }
}

}  // namespace training
