// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/master_weights.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>

#include "research/pretraining/muon.h"
#include "support/cli/fmt.h"

namespace pretraining {
namespace {

const char* const kUpdates = "updates";
const char *const kMuon = "muon", *const kDecaying = "decaying", *const kPlain = "plain";

bool contains_any(const std::string& name, const std::vector<std::string>& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

// Biases and the scales of norms are not weights: decay would only pull them to zero.
const char* group_of(const std::string& name, const at::Tensor& value,
                     const std::vector<std::string>& by_muon) {
  if (value.dim() < 2) return kPlain;
  return contains_any(name, by_muon) ? kMuon : kDecaying;
}

std::string optimizer_prefix(size_t slice) { return fmt::format("optimizer.{}.", slice); }

// A checkpoint's tensor into one of these weights'.
void restore(const lightlora::TensorMap& state, const std::string& name, const at::Tensor& target) {
  const auto found = state.find(name);
  TORCH_CHECK(found != state.end(), "expected '", name,
              "', got none; hint: the checkpoint is of another configuration");
  TORCH_CHECK(found->second.sizes() == target.sizes(), "expected '", name, "' of shape ",
              target.sizes(), ", got ", found->second.sizes(),
              "; hint: the checkpoint is of another configuration");
  target.copy_(found->second);
}

}  // namespace

MasterWeights::MasterWeights(const std::vector<TrainedPart>& parts, at::ScalarType compute_dtype,
                             const Options& options) {
  torch::NoGradGuard no_grad;
  std::vector<training::ParameterGroup> groups;
  for (const auto& part : parts) {
    const size_t first = groups.size();
    for (const char* kind : {kMuon, kDecaying, kPlain}) {
      groups.push_back({kind, part.rate_factor, {}});
    }
    for (auto& item : part.module.named_parameters()) {
      at::Tensor parameter = item.value();
      const std::string name = part.prefix + item.key();
      const auto value = parameter.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
      parameter.set_data(parameter.to(compute_dtype));
      if (!parameter.requires_grad()) {
        frozen_names_.push_back(name), frozen_.push_back(value);
        continue;
      }
      names_.push_back(name), parameters_.push_back(parameter), values_.push_back(value);
      const std::string kind = group_of(name, value, options.by_muon);
      groups[first + (kind == kMuon ? 0 : kind == kDecaying ? 1 : 2)].parameters.push_back(value);
    }
  }
  bank_ = std::make_unique<training::ParameterBank>(groups);
  average_ = std::make_unique<training::MovingAverage>(*bank_, options.ema_decay);
  const at::Tensor& average = average_->values();
  // Each value has become a view of the bank; its average lies at the same place.
  for (const auto& value : values_) {
    averages_.push_back(average.as_strided(
        value.sizes(), value.strides(),
        value.storage_offset() - bank_->values().storage_offset() + average.storage_offset()));
  }
  for (const auto& slice : bank_->slices()) {
    training::OptimizerOptions adamw;
    adamw.beta2 = options.beta2;
    adamw.decay = slice.name == kPlain ? 0 : options.weight_decay;
    if (slice.name == kMuon) {
      optimizers_.push_back(std::make_unique<Muon>(slice, options.weight_decay, compute_dtype));
    } else {
      optimizers_.push_back(training::make_optimizer(adamw, slice));
    }
  }
}

void MasterWeights::take_gradients() {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& gradient = parameters_[i].mutable_grad();
    if (gradient.defined()) values_[i].grad().add_(gradient);
    gradient.reset();
  }
}

void MasterWeights::step(double learning_rate) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    const auto& slice = bank_->slices()[i];
    optimizers_[i]->step(slice.values, slice.gradients, learning_rate * slice.rate_factor);
  }
  average_->update();
  use_values();
}

void MasterWeights::write(const std::vector<at::Tensor>& from) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].copy_(from[i]);
}

lightlora::TensorMap MasterWeights::averages(const std::string& prefix) const {
  lightlora::TensorMap map;
  const auto add = [&](const std::string& name, const at::Tensor& value) {
    if (name.compare(0, prefix.size(), prefix) == 0) {
      map[name.substr(prefix.size())] = value.detach().cpu().contiguous();
    }
  };
  for (size_t i = 0; i < names_.size(); ++i) add(names_[i], averages_[i]);
  for (size_t i = 0; i < frozen_.size(); ++i) add(frozen_names_[i], frozen_[i]);
  return map;
}

lightlora::TensorMap MasterWeights::state() const {
  lightlora::TensorMap state{{kUpdates, torch::tensor({average_->updates()}, at::kLong)}};
  for (size_t i = 0; i < names_.size(); ++i) {
    state["value." + names_[i]] = values_[i].detach().cpu().contiguous();
    state["average." + names_[i]] = averages_[i].cpu().contiguous();
  }
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    state.merge(optimizers_[i]->state(optimizer_prefix(i)));
  }
  return state;
}

void MasterWeights::load_state(const lightlora::TensorMap& state) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < names_.size(); ++i) {
    restore(state, "value." + names_[i], values_[i]);
    restore(state, "average." + names_[i], averages_[i]);
  }
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    optimizers_[i]->load_state(state, optimizer_prefix(i));
  }
  const at::Tensor updates = torch::tensor({int64_t{0}}, at::kLong);
  restore(state, kUpdates, updates);
  average_->go_on_after(updates.item<int64_t>());
  use_values();
}

}  // namespace pretraining
