// SPDX-License-Identifier: Apache-2.0
#pragma once

// AdaLoRA's budget of ranks.
#include <lightlora/train.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

using AdaLoRAAdapters = std::vector<std::shared_ptr<AdaLoRAAdapterImpl>>;

inline AdaLoRAAdapters adalora_adapters(const Patched& lora, const std::string& set) {
  AdaLoRAAdapters result;
  for (const auto& adapter : lora->adapters(set)) {
    if (adapter->layer().is_vector()) continue;
    auto adalora = std::dynamic_pointer_cast<AdaLoRAAdapterImpl>(adapter);
    TORCH_CHECK_VALUE(adalora, "'", adapter->layer().name,
                      "': expected an adalora adapter, whose ranks have a budget, got a ",
                      adapter->variant(), " one");
    result.push_back(std::move(adalora));
  }
  TORCH_CHECK_VALUE(!result.empty(), "expected adalora adapters in the set '", set, "', got none");
  return result;
}

}  // namespace detail

// What is kept of one layer, for down, lambda and up in this order.
struct RankBudget::Layer {
  explicit Layer(std::shared_ptr<AdaLoRAAdapterImpl> of)
      : adapter(std::move(of)), kept(at::ones_like(adapter->lambda.detach(), at::kBool)) {
    forget();
  }

  std::shared_ptr<AdaLoRAAdapterImpl> adapter;
  std::array<at::Tensor, 3> sensitivity, uncertainty;
  at::Tensor kept;  // (rank, 1), bool: what the last choice has left

  void forget() {
    const auto all = values();
    for (std::size_t i = 0; i < all.size(); ++i) {
      sensitivity[i] = at::zeros_like(all[i].detach());
      uncertainty[i] = at::zeros_like(all[i].detach());
    }
  }
  std::array<at::Tensor, 3> values() const { return {adapter->down, adapter->lambda, adapter->up}; }
  at::Tensor score(std::size_t i) const { return sensitivity[i] * uncertainty[i]; }
  // (rank)
  at::Tensor importance() const {
    return score(1).flatten() + (score(0).mean(1) + score(2).mean(0));
  }
};

LIGHTLORA_INLINE RankBudget::RankBudget(const Patched& lora, int64_t total_steps,
                                        const BudgetOptions& options, const std::string& set)
    : options_(options), total_steps_(total_steps) {
  for (const double beta : {options.beta1(), options.beta2()}) {
    TORCH_CHECK_VALUE(beta > 0 && beta < 1, "expected beta1 and beta2 between 0 and 1, got ", beta);
  }
  for (const auto& adapter : detail::adalora_adapters(lora, set)) {
    layers_.emplace_back(adapter);
    first_ += adapter->options().rank();
    target_ += adapter->target_rank();
  }
  const AdaLoRAOptions& own = layers_.front().adapter->budget();
  tinit_ = own.tinit();
  tfinal_ = own.tfinal();
  delta_t_ = own.delta_t();
  TORCH_CHECK_VALUE(tinit_ + tfinal_ < total_steps_, "expected more than ", tinit_ + tfinal_,
                    " steps in all (tinit ", tinit_, " and tfinal ", tfinal_,
                    "), so that there are some to take ranks away in, got ", total_steps_);
}

LIGHTLORA_INLINE RankBudget::~RankBudget() = default;
LIGHTLORA_INLINE RankBudget::RankBudget(RankBudget&&) noexcept = default;
LIGHTLORA_INLINE RankBudget& RankBudget::operator=(RankBudget&&) noexcept = default;

LIGHTLORA_INLINE int64_t RankBudget::at(int64_t step) const {
  if (step <= tinit_) return first_;
  if (step > total_steps_ - tfinal_) return target_;
  const double left =
      1 - static_cast<double>(step - tinit_) / static_cast<double>(total_steps_ - tfinal_ - tinit_);
  return static_cast<int64_t>(static_cast<double>(first_ - target_) * (left * left * left) +
                              static_cast<double>(target_));
}

LIGHTLORA_INLINE void RankBudget::update() {
  for (auto& layer : layers_) {
    const auto values = layer.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const at::Tensor gradient = values[i].grad();
      TORCH_CHECK(gradient.defined(), "'", layer.adapter->layer().name,
                  "': expected gradients to weigh ranks by, got none; hint: call step() behind ",
                  "the optimizer's, before the gradients are set to none");
      at::Tensor &smooth = layer.sensitivity[i], &spread = layer.uncertainty[i];
      const at::Tensor now = (values[i] * gradient).abs().detach();
      smooth = options_.beta1() * smooth + (1 - options_.beta1()) * now;
      spread = options_.beta2() * spread + (1 - options_.beta2()) * (now - smooth).abs();
    }
  }
}

// Takes away the least important ranks, so many that the budget is kept.
LIGHTLORA_INLINE void RankBudget::choose(int64_t budget) {
  std::vector<at::Tensor> all, together;
  for (const auto& layer : layers_) {
    all.push_back(layer.importance());
    together.push_back(all.back().to(all.front().device()));
  }
  const at::Tensor joined = at::cat(together);
  if (joined.max().item<double>() == 0) return;  // nothing has been seen yet
  const at::Tensor threshold = std::get<0>(at::kthvalue(joined, /*k=*/first_ - budget));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].kept = all[i].gt(threshold.to(all[i].device())).unsqueeze(1);
    layers_[i].adapter->lambda.masked_fill_(layers_[i].kept.logical_not(), 0);
  }
}

LIGHTLORA_INLINE int64_t RankBudget::step(int64_t step) {
  const at::NoGradGuard no_grad;
  const int64_t last = total_steps_ - tfinal_, budget = at(step);
  if (step > last) {
    for (auto& layer : layers_) {
      layer.adapter->lambda.masked_fill_(layer.kept.logical_not(), 0);
    }
    return budget;
  }
  if (step < last) update();
  const bool due = step == last || (step > tinit_ && step % delta_t_ == 0);
  if (due && budget < first_) choose(budget);
  if (step < last) return budget;
  for (auto& layer : layers_) layer.forget();
  return budget;
}

LIGHTLORA_INLINE TrainedValues RankBudget::state() const {
  TrainedValues state;
  static constexpr const char* kNames[] = {"down", "lambda", "up"};
  for (const auto& layer : layers_) {
    const std::string path = layer.adapter->layer().name + ".";
    for (std::size_t i = 0; i < layer.sensitivity.size(); ++i) {
      state[path + kNames[i] + ".sensitivity"] = layer.sensitivity[i].cpu();
      state[path + kNames[i] + ".uncertainty"] = layer.uncertainty[i].cpu();
    }
    state[path + "kept"] = layer.kept.cpu().to(at::kFloat);
  }
  return state;
}

LIGHTLORA_INLINE void RankBudget::load_state(const TrainedValues& state) {
  static constexpr const char* kNames[] = {"down", "lambda", "up"};
  for (auto& layer : layers_) {
    const std::string path = layer.adapter->layer().name + ".";
    const auto take = [&](const std::string& name, const at::Tensor& like) {
      const auto found = state.find(path + name);
      TORCH_CHECK(found != state.end() && found->second.sizes() == like.sizes(), "'",
                  layer.adapter->layer().name, "': expected the budget's ", name, " ", like.sizes(),
                  ", got ", found == state.end() ? "none" : "one of another shape",
                  "; hint: the state is of other adapters");
      return found->second.to(like.device(), like.scalar_type(), /*non_blocking=*/false,
                              /*copy=*/true);
    };
    for (std::size_t i = 0; i < layer.sensitivity.size(); ++i) {
      const std::string name = kNames[i];
      layer.sensitivity[i] = take(name + ".sensitivity", layer.sensitivity[i]);
      layer.uncertainty[i] = take(name + ".uncertainty", layer.uncertainty[i]);
    }
    layer.kept = take("kept", layer.kept.to(at::kFloat)).ne(0);
  }
}

LIGHTLORA_INLINE torch::Tensor orthogonality(const Patched& lora, const std::string& set) {
  torch::Tensor sum;
  const auto adapters = detail::adalora_adapters(lora, set);
  for (const auto& adapter : adapters) {
    const at::Tensor one = at::eye(adapter->options().rank(), adapter->down.options());
    const at::Tensor apart = (adapter->down.mm(adapter->down.t()) - one).norm() +
                             (adapter->up.t().mm(adapter->up) - one).norm();
    sum = sum.defined() ? sum + apart : apart;
  }
  return sum / static_cast<double>(2 * adapters.size());
}

}  // namespace lightlora
