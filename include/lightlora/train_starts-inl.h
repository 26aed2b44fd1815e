// SPDX-License-Identifier: Apache-2.0
#pragma once

// Starts from data: adapters that only look take the place of the real ones while the model runs.
#include <lightlora/train.h>

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

// Sees the inputs of a linear layer, which it leaves as they are.
class InputProbe : public AdapterModule<InputProbe> {
 public:
  static constexpr const char* kVariant = "input probe";

  InputProbe(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    TORCH_CHECK(layer_.kernel.empty() && layer_.out_kernel.empty() && !layer_.lookup &&
                    (layer_.type == "Linear" || layer_.type == "MultiheadAttention"),
                "'", layer_.name, "': expected a Linear layer to see the inputs of, got ",
                layer_.type, "; hint: leave it out of the targets, or start with lora_ga");
    reset();
  }

  void reset_parameters() override {}
  torch::Tensor added(const torch::Tensor& weight) const override {
    return torch::zeros_like(weight, seen.options());
  }
  torch::Tensor rotated(const torch::Tensor& x) const override {
    const torch::NoGradGuard no_grad;
    const torch::Tensor rows = x.detach().reshape({-1, layer_.in}).to(torch::kDouble);
    const double largest = rows.numel() > 0 ? rows.max().abs().item<double>() : 0.0;
    const torch::Tensor square = rows.t().mm(rows);
    sum = calls == 0 ? rows.sum(0) : sum + rows.sum(0);
    products = calls == 0 ? square : products + square;
    if (largest > 0) {
      const torch::Tensor scaled = square / (largest * largest);
      normalised = normalised.defined() ? normalised + scaled : scaled;
    }
    count += rows.size(0);
    ++calls;
    // No sum of the weight is kept for a tensor that changes with every call.
    torch::Tensor(seen).add_(1);
    return x;
  }

  mutable torch::Tensor sum, products, normalised;  // (in), (in, in), (in, in)
  mutable int64_t count = 0, calls = 0;
  torch::Tensor seen, unused;

 protected:
  void register_tensors() override {
    unused = register_parameter("unused", torch::zeros({1}));
    seen = register_buffer("seen", torch::zeros({1}));
  }

 private:
  bool factorises() const override { return false; }
  bool rotates() const override { return true; }
};

// Gets the gradient of its layer's weight, as that of a difference that is zero.
class GradientProbe : public AdapterModule<GradientProbe> {
 public:
  static constexpr const char* kVariant = "gradient probe";

  GradientProbe(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {}
  torch::Tensor added(const torch::Tensor& /*weight*/) const override {
    if (at::GradMode::is_enabled()) ++calls;
    return diff;
  }

  mutable int64_t calls = 0;
  torch::Tensor diff;

 protected:
  void register_tensors() override {
    diff = register_parameter("diff", torch::zeros({layer_.out, layer_.in}));
  }

 private:
  bool factorises() const override { return false; }
};

// A set of probes over the layers of another set, active alone while it lives.
template <typename Probe>
class Probes {
 public:
  Probes(const Patched& lora, const std::string& set) : lora_(lora), before_(lora->active()) {
    std::set<std::string> paths;
    for (const auto& adapter : lora->adapters(set)) paths.insert(adapter->layer().name);
    const Targets targets{Pattern("the layers of '" + set + "'", [paths](const std::string& path) {
      return paths.count(path) > 0;
    })};
    const AdapterFactory make = [](LoRAOptions all, LayerInfo layer) -> std::shared_ptr<Adapter> {
      return std::make_shared<Probe>(std::move(all), std::move(layer));
    };
    lora_->add(kName, make, LoRAOptions(1), targets);
    lora_->set_active({{kName, 1.0}});
  }
  ~Probes() {
    lora_->remove(kName);
    lora_->set_active(before_);
  }
  Probes(const Probes&) = delete;
  Probes& operator=(const Probes&) = delete;

  std::map<std::string, std::shared_ptr<Probe>> run(const std::function<void()>& model) const {
    {
      const auto on = lora_->activate();
      model();
    }
    std::map<std::string, std::shared_ptr<Probe>> found;
    for (const auto& adapter : lora_->adapters(kName)) {
      auto probe = std::dynamic_pointer_cast<Probe>(adapter);
      TORCH_CHECK(probe->calls > 0, "'", adapter->layer().name,
                  "': expected a call of this layer in the run that a start is taken from, got ",
                  "none; hint: run the model as it is trained, and leave out what it does not use");
      found[adapter->layer().name] = std::move(probe);
    }
    return found;
  }

 private:
  static constexpr const char* kName = "start_from_data";
  Patched lora_;
  std::map<std::string, double> before_;
};

using ClassicAdapters = std::vector<std::shared_ptr<ClassicAdapterImpl>>;

inline ClassicAdapters classic_adapters(const Patched& lora, const std::string& set) {
  ClassicAdapters result;
  for (const auto& adapter : lora->adapters(set)) {
    auto classic = std::dynamic_pointer_cast<ClassicAdapterImpl>(adapter);
    TORCH_CHECK_VALUE(classic, "'", adapter->layer().name,
                      "': expected a classic adapter to start from data, got a ",
                      adapter->variant(), " one");
    result.push_back(std::move(classic));
  }
  return result;
}

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
  const auto active = lora->active();
  lora->remove(set);
  lora->add(set, state);
  lora->set_active(active);
}

inline void check_start_options(const StartOptions& options) {
  TORCH_CHECK_VALUE(options.rho() >= 1, "expected rho >= 1, got ", options.rho());
  TORCH_CHECK_VALUE(options.stable_gamma() > 0, "expected stable_gamma > 0, got ",
                    options.stable_gamma());
}

}  // namespace detail

LIGHTLORA_INLINE void start_from_data(const Patched& lora, const std::function<void()>& run,
                                      const StartOptions& options, const std::string& set) {
  detail::check_start_options(options);
  const auto adapters = detail::classic_adapters(lora, set);
  const LoRAStart start = adapters.front()->start();
  if (start == LoRAStart::lora_ga) {
    const detail::Probes<detail::GradientProbe> probes(lora, set);
    const auto found = probes.run(run);
    const torch::NoGradGuard no_grad;
    for (const auto& adapter : adapters) {
      const auto& probe = *found.at(adapter->layer().name);
      adapter->start_at(detail::start_lora_ga(*adapter, probe, options.stable_gamma()));
    }
    return;
  }
  TORCH_CHECK_VALUE(start == LoRAStart::eva || start == LoRAStart::corda,
                    "expected adapters with init_lora_weights eva, corda or lora_ga, got ",
                    to_string(start));
  std::map<std::string, std::shared_ptr<detail::InputProbe>> found;
  {
    const detail::Probes<detail::InputProbe> probes(lora, set);
    found = probes.run(run);
  }
  const torch::NoGradGuard no_grad;
  if (start == LoRAStart::eva) {
    return detail::start_eva(lora, adapters, found, options.rho(), set);
  }
  for (const auto& adapter : adapters) {
    const std::string& path = adapter->layer().name;
    adapter->start_at(detail::start_corda(*adapter, *found.at(path), lora->weight_of(path),
                                          options.corda_method()));
  }
}

}  // namespace lightlora
