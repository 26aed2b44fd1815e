// SPDX-License-Identifier: Apache-2.0
#pragma once

// Adapters that only look, in the place of the real ones while a model runs.
#include <lightlora/train.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

// Looks at the inputs of a linear layer, which it leaves as they are: what watchers of inputs share.
template <typename Probe>
class WatchesInputs : public AdapterModule<Probe> {
 public:
  WatchesInputs(LoRAOptions options, LayerInfo layer)
      : AdapterModule<Probe>(std::move(options), std::move(layer)) {
    const LayerInfo& own = this->layer_;
    TORCH_CHECK(own.kernel.empty() && own.out_kernel.empty() && !own.lookup &&
                    (own.type == "Linear" || own.type == "MultiheadAttention"),
                "'", own.name, "': expected a Linear layer to see the inputs of, got ", own.type,
                "; hint: leave it out of the targets", Probe::kElse);
    this->reset();
  }

  void reset_parameters() override {}
  torch::Tensor added(const torch::Tensor& weight) const override {
    return torch::zeros_like(weight, seen.options());
  }
  torch::Tensor rotated(const torch::Tensor& x) const override {
    const torch::NoGradGuard no_grad;
    const torch::Tensor rows = x.detach().reshape({-1, this->layer_.in}).to(torch::kDouble);
    static_cast<const Probe*>(this)->see(rows);
    count += rows.size(0);
    ++calls;
    // No sum of the weight is kept for a tensor that changes with every call.
    torch::Tensor(seen).add_(1);
    return x;
  }

  mutable int64_t count = 0, calls = 0;
  torch::Tensor seen, unused;

 protected:
  void register_tensors() override {
    unused = this->register_parameter("unused", torch::zeros({1}));
    seen = this->register_buffer("seen", torch::zeros({1}));
  }

 private:
  bool factorises() const override { return false; }
  bool rotates() const override { return true; }
};

// Sees the inputs of a linear layer, which it leaves as they are.
class InputProbe : public WatchesInputs<InputProbe> {
 public:
  static constexpr const char* kVariant = "input probe";
  static constexpr const char* kElse = ", or start with lora_ga";
  using WatchesInputs::WatchesInputs;

  void see(const torch::Tensor& rows) const {
    const double largest = rows.numel() > 0 ? rows.max().abs().item<double>() : 0.0;
    const torch::Tensor square = rows.t().mm(rows);
    sum = calls == 0 ? rows.sum(0) : sum + rows.sum(0);
    products = calls == 0 ? square : products + square;
    if (largest > 0) {
      const torch::Tensor scaled = square / (largest * largest);
      normalised = normalised.defined() ? normalised + scaled : scaled;
    }
  }

  mutable torch::Tensor sum, products, normalised;  // (in), (in, in), (in, in)
};

// Sees how large the channels of a linear layer's inputs are.
class ChannelProbe : public WatchesInputs<ChannelProbe> {
 public:
  static constexpr const char* kVariant = "channel probe";
  static constexpr const char* kElse = " of channel_scaling";
  using WatchesInputs::WatchesInputs;

  void see(const torch::Tensor& rows) const {
    const torch::Tensor sizes = rows.abs().sum(0);
    sum = calls == 0 ? sizes : sum + sizes;
  }

  mutable torch::Tensor sum;  // (in), of |x|
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
    for (const auto& adapter : lora->adapters(set)) {
      if (!adapter->layer().is_vector()) paths.insert(adapter->layer().name);
    }
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
    if (adapter->layer().is_vector()) continue;
    auto classic = std::dynamic_pointer_cast<ClassicAdapterImpl>(adapter);
    TORCH_CHECK_VALUE(classic, "'", adapter->layer().name,
                      "': expected a classic adapter to start from data, got a ",
                      adapter->variant(), " one");
    result.push_back(std::move(classic));
  }
  TORCH_CHECK_VALUE(!result.empty(), "expected classic adapters in the set '", set,
                    "', got norms and biases alone");
  return result;
}

}  // namespace detail

}  // namespace lightlora
