// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a training loop does between its steps: gradients in another geometry, ranks by timestep.
#include <lightlora/train.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace lightlora {

namespace detail {

// The two factors of an adapter that trains them and nothing between them; undefined otherwise.
inline Factors trained_factors(const Adapter& adapter) {
  const NamedTensors trained = adapter.trained();
  const auto* down = trained.find("down");
  const auto* up = trained.find("up");
  if (trained.find("lambda")) return {};
  if (!down || !up || down->dim() != 2 || up->dim() != 2 || down->size(0) != up->size(1)) return {};
  return {*down, *up};
}

// gram + damping * I, inverted. Shapes: (r, r)
inline at::Tensor damped_inverse(const at::Tensor& gram, double damping) {
  return at::linalg_pinv(gram + damping * at::eye(gram.size(0), gram.options()));
}

inline std::shared_ptr<TLoRAAdapterImpl> as_tlora(const std::shared_ptr<Adapter>& adapter) {
  auto tlora = std::dynamic_pointer_cast<TLoRAAdapterImpl>(adapter);
  TORCH_CHECK_VALUE(tlora, "'", adapter->layer().name,
                    "': expected a tlora adapter, whose ranks have timesteps, got a ",
                    adapter->variant(), " one");
  return tlora;
}

}  // namespace detail

LIGHTLORA_INLINE void precondition(const Patched& lora, Preconditioner kind, double damping,
                                   const std::string& set) {
  TORCH_CHECK_VALUE(damping > 0, "expected a damping > 0, got ", damping);
  const at::NoGradGuard no_grad;
  for (const auto& adapter : lora->adapters(set)) {
    const Factors factors = detail::trained_factors(*adapter);
    if (!factors.down.defined()) continue;
    at::Tensor down = factors.down.grad(), up = factors.up.grad();
    // Both from the values before the step, and from both.
    const at::Tensor of_down = detail::damped_inverse(factors.down.mm(factors.down.t()), damping);
    if (kind == Preconditioner::riemannian && down.defined()) {
      down.copy_(detail::damped_inverse(factors.up.t().mm(factors.up), damping).mm(down));
    }
    const double scale = kind == Preconditioner::lora_fa ? adapter->scale() : 1.0;
    if (up.defined()) up.copy_(up.mm(of_down) / (scale * scale));
  }
}

LIGHTLORA_INLINE void freeze_down(const Patched& lora, const std::string& set) {
  std::vector<std::shared_ptr<Adapter>> adapters;
  for (const auto& adapter : lora->adapters(set)) {
    if (!adapter->layer().is_vector()) adapters.push_back(adapter);
  }
  for (const auto& adapter : adapters) {
    TORCH_CHECK_VALUE(detail::trained_factors(*adapter).down.defined(), "'", adapter->layer().name,
                      "': expected an adapter that trains down and up, got a ", adapter->variant(),
                      " one");
  }
  for (const auto& adapter : adapters) {
    detail::trained_factors(*adapter).down.set_requires_grad(false);
  }
}

LIGHTLORA_INLINE void set_timestep(const Patched& lora, int64_t timestep, int64_t max_timestep,
                                   std::optional<int64_t> min_rank, std::optional<double> alpha,
                                   const std::string& set) {
  TORCH_CHECK_VALUE(timestep >= 0 && timestep <= max_timestep && max_timestep > 0,
                    "expected a timestep from 0 to ", max_timestep, ", got ", timestep);
  TORCH_CHECK_VALUE(min_rank.value_or(1) >= 1, "expected min_rank >= 1, got ", *min_rank);
  const double share =
      static_cast<double>(max_timestep - timestep) / static_cast<double>(max_timestep);
  for (const auto& adapter : lora->adapters(set)) {
    if (adapter->layer().is_vector()) continue;
    const auto tlora = detail::as_tlora(adapter);
    const int64_t rank = adapter->options().rank();
    const int64_t least = std::min(rank, min_rank.value_or(tlora->schedule().min_rank()));
    const double more = std::pow(share, alpha.value_or(tlora->schedule().alpha_rank_scale())) *
                        static_cast<double>(rank - least);
    tlora->set_active_ranks(std::min(rank, static_cast<int64_t>(more) + least));
  }
}

LIGHTLORA_INLINE void clear_timestep(const Patched& lora, const std::string& set) {
  for (const auto& adapter : lora->adapters(set)) {
    if (adapter->layer().is_vector()) continue;
    detail::as_tlora(adapter)->set_active_ranks(adapter->options().rank());
  }
}

}  // namespace lightlora
