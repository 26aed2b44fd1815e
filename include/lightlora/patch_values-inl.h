// SPDX-License-Identifier: Apache-2.0
#pragma once

// The trained values of a set as one vector, and activations with such vectors from outside.
#include <lightlora/patch.h>
#include <lightlora/patch_active-inl.h>

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

// Part of a vector of values, or of a batch of them, for one adapter, beginning at `start`, which
// moves on.
inline TrainedValues values_for(const Adapter& adapter, const at::Tensor& values, int64_t& start) {
  TrainedValues result;
  for (const auto& item : adapter.trained()) {
    const at::Tensor part = values.narrow(-1, start, item.value().numel());
    result[item.key()] = part.unflatten(-1, item.value().sizes());
    start += item.value().numel();
  }
  return result;
}

}  // namespace detail

LIGHTLORA_INLINE torch::Tensor PatchedImpl::values(const std::string& name) const {
  std::vector<torch::Tensor> parts;
  for (const auto& item : named_parameters(name)) parts.push_back(item.value().flatten());
  return at::cat(parts);
}

LIGHTLORA_INLINE void PatchedImpl::assign(const torch::Tensor& values, const std::string& name) {
  const auto parameters = named_parameters(name);
  int64_t count = 0, start = 0;
  for (const auto& item : parameters) count += item.value().numel();
  TORCH_CHECK(values.dim() == 1 && values.numel() == count, "expected ", count,
              " values for the set '", name, "', got ", values.sizes());
  torch::NoGradGuard no_grad;
  for (const auto& item : parameters) {
    torch::Tensor parameter = item.value();
    parameter.copy_(values.narrow(0, start, parameter.numel()).view(parameter.sizes()));
    start += parameter.numel();
  }
}

LIGHTLORA_INLINE Activation PatchedImpl::activate_values(const torch::Tensor& values,
                                                         const std::string& name) {
  detail::register_kernels();
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(!merged_, "expected unmerged adapters to take other values, got merged ones; ",
              "hint: call unmerge() first");
  Table table = values_table(values, name);
  ++depth_;
  return {shared_from_this(), std::move(table)};
}

LIGHTLORA_INLINE PatchedImpl::Table PatchedImpl::values_table(const torch::Tensor& values,
                                                              const std::string& name) {
  require_set(name);
  require_in_place();
  int64_t count = 0, start = 0;
  for (const auto& adapter : adapters(name)) count += adapter->trained_count();
  TORCH_CHECK((values.dim() == 1 || values.dim() == 2) && values.size(-1) == count, "expected ",
              count, " values for the set '", name, "', in the order of values('", name,
              "'), or a batch of them, got ", values.sizes());
  const torch::Tensor batch = values.dim() == 1 ? values.unsqueeze(0) : values;
  auto table = std::make_shared<detail::ActiveTable>(this);
  for (const auto& site : sites_) {
    const auto found = site.adapters.find(name);
    if (found == site.adapters.end()) continue;
    const Adapter& adapter = *found->second;
    const LayerKind kind = site.weight.kind();
    const bool dropping = has_dropout(adapter) && adapter.module().is_training();
    TORCH_CHECK((kind == LayerKind::linear || kind == LayerKind::convolution) && !site.bound &&
                    !adapter.options().dora() && !dropping && site.weight.part().empty() &&
                    !detail::is_attention_output(sites_, site.path),
                "'", site.path, "': values from outside cannot be combined with ",
                site.bound                 ? "a bound weight"
                : adapter.options().dora() ? "DoRA"
                : dropping                 ? "a dropout in training"
                                           : site.weight.type(),
                ": linear layers and convolutions take them; hint: leave it out of the set");
    const Factors factors = adapter.factors_of(detail::values_for(adapter, batch, start));
    AdaptedSite made = make_site(site.path, site.weight, {{found->second, 1.0}}, site.state);
    made.rows = std::make_shared<RowChoice>();
    made.given = GivenFactors{factors.down, factors.up * adapter.scale()};
    table->add(std::move(made));
  }
  return table;
}

}  // namespace lightlora
