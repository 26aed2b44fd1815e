// SPDX-License-Identifier: Apache-2.0
#pragma once

// Starts from data, and the sizes of channels.
#include <lightlora/train.h>
#include <lightlora/train_probes-inl.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

inline Factors start_lora_ga(const ClassicAdapterImpl& adapter, const GradientProbe& probe,
                             double stable_gamma) {
  const LayerInfo& layer = adapter.layer();
  const int64_t r = adapter.options().rank();
  const at::Tensor gradient = probe.diff.grad();
  TORCH_CHECK(gradient.defined(), "'", layer.name, "': expected a gradient from the run that a ",
              "start is taken from, got none; hint: call backward() in it");
  TORCH_CHECK_VALUE(2 * r <= std::min(layer.in, layer.out), "'", layer.name,
                    "': expected rank <= ", std::min(layer.in, layer.out) / 2,
                    " (lora_ga takes twice as many singular vectors), got ", r);
  const auto calls = static_cast<double>(probe.calls);
  const auto [u, s, vh] = at::linalg_svd(gradient.to(at::kDouble) / calls, false);
  const double size = std::pow(static_cast<double>(layer.out), 0.25) / std::sqrt(stable_gamma);
  return {vh.slice(0, 0, r), u.slice(1, r, 2 * r) * s.slice(0, r, 2 * r) * size};
}

// The damping is doubled until the inverse is one, as in PEFT.
inline Factors start_corda(const ClassicAdapterImpl& adapter, const InputProbe& probe,
                           const at::Tensor& weight, CordaMethod method) {
  TORCH_CHECK(probe.normalised.defined(), "'", adapter.layer().name,
              "': expected inputs other than zero to start from, got only zeros");
  const int64_t r = adapter.options().rank();
  const at::Tensor covariance = probe.normalised / static_cast<double>(probe.calls);
  const at::Tensor one = at::eye(covariance.size(0), covariance.options());
  at::Tensor damped, inverse;
  for (double damping = 0.01;; damping *= 2) {
    damped = covariance + one * (covariance.diagonal().mean() * damping);
    inverse = at::linalg_inv(damped);
    if ((damped.mm(inverse) - one).norm().item<double>() < 0.05) break;
  }
  const auto [u, s, vh] = at::linalg_svd(weight.to(at::kDouble).mm(damped), false);
  const int64_t first = method == CordaMethod::ipm ? 0 : s.size(0) - r;
  const at::Tensor root = (s.narrow(0, first, r) / adapter.scale()).sqrt();
  return {root.unsqueeze(1) * vh.narrow(0, first, r).mm(inverse), u.narrow(1, first, r) * root};
}

// The main directions of a layer's inputs, and the share of their variance that each explains.
struct Directions {
  at::Tensor rows;            // (most, in)
  std::vector<double> share;  // (most)
  int64_t rank = 0;           // how many are taken
};

inline Directions directions_of(const InputProbe& probe, int64_t most, const std::string& path) {
  TORCH_CHECK(probe.count >= most, "'", path, "': expected at least ", most,
              " rows of inputs for as many directions, got ", probe.count,
              "; hint: run more batches, or lower the rank or rho");
  const auto count = static_cast<double>(probe.count);
  const at::Tensor mean = probe.sum / count;
  const at::Tensor scatter = probe.products - count * at::outer(mean, mean);
  const auto [values, vectors] = at::linalg_eigh(scatter);  // in rising order
  const at::Tensor falling = values.flip(0).slice(0, 0, most).clamp_min(0);
  const at::Tensor share = (falling / scatter.trace().clamp_min(1e-300)).cpu();
  const double* begin = share.const_data_ptr<double>();
  return {vectors.flip(1).slice(1, 0, most).t(), {begin, begin + share.numel()}, 0};
}

// The directions that explain most, over all layers, as many as there were ranks.
inline void share_ranks(std::vector<Directions>& layers, int64_t budget) {
  std::vector<std::pair<double, std::size_t>> all;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const double share : layers[i].share) all.emplace_back(share, i);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  all.resize(std::min(all.size(), static_cast<std::size_t>(budget)));
  for (const auto& item : all) ++layers[item.second].rank;
}

// The same adapter at another rank and the same scale.
inline LayerState resized(const ClassicAdapterImpl& adapter, const Directions& directions) {
  LayerState state = state_of(adapter);
  const double before = static_cast<double>(state.options.rank());
  const auto now = static_cast<double>(directions.rank);
  state.options.rank(directions.rank);
  if (const auto alpha = state.options.network_alpha()) {
    const double ratio = now / before;
    state.options.network_alpha(*alpha * (state.options.rslora() ? std::sqrt(ratio) : ratio));
  }
  state.trained["down"] = directions.rows.slice(0, 0, directions.rank).to(at::kFloat).cpu();
  state.trained["up"] = at::zeros({adapter.layer().out, directions.rank});
  return state;
}

inline void start_eva(const Patched& lora, const ClassicAdapters& adapters,
                      const std::map<std::string, std::shared_ptr<InputProbe>>& probes, double rho,
                      const std::string& set) {
  std::vector<Directions> layers;
  int64_t budget = 0;
  for (const auto& adapter : adapters) {
    const int64_t rank = adapter->options().rank();
    const auto most = std::min<int64_t>(std::llround(static_cast<double>(rank) * rho),
                                        std::min(adapter->layer().in, adapter->layer().out));
    layers.push_back(directions_of(*probes.at(adapter->layer().name), most, adapter->layer().name));
    budget += rank;
  }
  share_ranks(layers, budget);
  bool moved = false;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    moved = moved || layers[i].rank != adapters[i]->options().rank();
  }
  AdapterState state;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (moved && layers[i].rank > 0) state.push_back(resized(*adapters[i], layers[i]));
    if (!moved) {
      adapters[i]->start_at({layers[i].rows.slice(0, 0, layers[i].rank), adapters[i]->up.zero_()});
    }
  }
  if (!moved) return;
  for (const auto& adapter : lora->adapters(set)) {
    if (adapter->layer().is_vector()) state.push_back(state_of(*adapter));
  }
  const auto active = lora->active();
  lora->remove(set);
  lora->add(set, state);
  lora->set_active(active);
}

inline void check_start_options(const StartOptions& options) {
  TORCH_CHECK_VALUE(options.rho() >= 1, "expected rho >= 1, got ", options.rho());
  TORCH_CHECK_VALUE(options.stable_gamma() > 0, "expected stable_gamma > 0, got ",
                    options.stable_gamma());
  TORCH_CHECK_VALUE(options.channel_exponent() > 0, "expected channel_exponent > 0, got ",
                    options.channel_exponent());
}

inline bool starts_from_data(LoRAStart start) {
  return start == LoRAStart::eva || start == LoRAStart::corda || start == LoRAStart::lora_ga;
}

// Channels that are always zero count as the smallest of the others: no step moves them anyhow.
inline void measure_channels(const Patched& lora, const std::function<void()>& run, double exponent,
                             const std::string& set) {
  std::map<std::string, std::shared_ptr<ChannelProbe>> found;
  {
    const Probes<ChannelProbe> probes(lora, set);
    found = probes.run(run);
  }
  for (const auto& adapter : classic_adapters(lora, set)) {
    const auto& probe = *found.at(adapter->layer().name);
    const at::Tensor mean = probe.sum / static_cast<double>(probe.count);
    const at::Tensor seen = mean.masked_select(mean.gt(0));
    TORCH_CHECK(
        seen.numel() > 0 && mean.isfinite().all().item<bool>(), "'", adapter->layer().name,
        "': expected finite inputs that are not all zero to measure channels of, got others");
    adapter->scale_channels(mean.clamp_min(seen.min()).pow(exponent));
  }
}

// Eva, corda and lora_ga.
inline void start_factors(const Patched& lora, const std::function<void()>& run,
                          const StartOptions& options, const std::string& set) {
  const auto adapters = classic_adapters(lora, set);
  const LoRAStart start = adapters.front()->start();
  if (start == LoRAStart::lora_ga) {
    const Probes<GradientProbe> probes(lora, set);
    const auto found = probes.run(run);
    const torch::NoGradGuard no_grad;
    for (const auto& adapter : adapters) {
      const auto& probe = *found.at(adapter->layer().name);
      adapter->start_at(start_lora_ga(*adapter, probe, options.stable_gamma()));
    }
    return;
  }
  std::map<std::string, std::shared_ptr<InputProbe>> found;
  {
    const Probes<InputProbe> probes(lora, set);
    found = probes.run(run);
  }
  const torch::NoGradGuard no_grad;
  if (start == LoRAStart::eva) {
    return start_eva(lora, adapters, found, options.rho(), set);
  }
  for (const auto& adapter : adapters) {
    const std::string& path = adapter->layer().name;
    adapter->start_at(
        start_corda(*adapter, *found.at(path), lora->weight_of(path), options.corda_method()));
  }
}

}  // namespace detail

LIGHTLORA_INLINE void start_from_data(const Patched& lora, const std::function<void()>& run,
                                      const StartOptions& options, const std::string& set) {
  detail::check_start_options(options);
  const auto first = detail::classic_adapters(lora, set).front();
  const bool starts = detail::starts_from_data(first->start()), scales = first->scales_channels();
  TORCH_CHECK_VALUE(starts || scales,
                    "expected adapters with init_lora_weights eva, corda or lora_ga, or with ",
                    "channel_scaling, got init_lora_weights ", to_string(first->start()));
  if (starts) detail::start_factors(lora, run, options, set);
  if (scales) detail::measure_channels(lora, run, options.channel_exponent(), set);
}

}  // namespace lightlora
