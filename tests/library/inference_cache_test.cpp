// SPDX-License-Identifier: Apache-2.0
// What evaluation keeps: it must be used, and never after anything it was made from has changed.
#include <ATen/record_function.h>
#include <lightlora/patch.h>
#include <lightlora/train.h>

#include <functional>
#include <map>

#include "allocations.h"
#include "support.h"

using lightlora::LoRAOptions;
using lightlora::Route;
using lightlora_tests::largest_allocation;
using torch::Tensor;

namespace {

struct Evaluated {
  torch::nn::Sequential model{torch::nn::Linear(24, 40)};
  lightlora::Patched lora;
  Tensor x;

  explicit Evaluated(const std::string& variant = "light",
                     torch::ScalarType dtype = torch::kFloat) {
    torch::manual_seed(3);
    model->to(dtype);
    model->eval();
    lora = lightlora::patch(*model, variant, LoRAOptions(4).network_alpha(2), {"0"});
    x = torch::randn({5, 24}).to(dtype);
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.3);
  }

  Tensor kept() {
    const torch::NoGradGuard no_grad;
    lora(model, x);  // the first call after a change keeps nothing yet
    return lora(model, x);
  }
  // With autograd nothing is kept.
  Tensor fresh() { return lora(model, x).detach(); }
};

// Products of matrices that one call computes.
int64_t& calls() {
  static int64_t count = 0;
  return count;
}

int64_t products(const std::function<void()>& call) {
  calls() = 0;
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(
      [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
        const std::string name = function.name();
        if (name == "aten::mm" || name == "aten::addmm" || name == "aten::addmm_") ++calls();
        return nullptr;
      }));
  call();
  at::removeCallback(handle);
  return calls();
}

void check_follows(Evaluated& e, const std::function<void()>& change) {
  const Tensor before = e.kept();
  CHECK(close(before, e.fresh(), 2e-6));
  {
    const torch::NoGradGuard no_grad;
    change();
  }
  CHECK_FALSE(close(e.kept(), before, 1e-3));
  CHECK(close(e.kept(), e.fresh(), 2e-6));
}

}  // namespace

TEST_CASE("evaluation follows every change of what its merged weight was made from",
          "[inference_cache]") {
  for (const std::string variant : {"classic", "light", "fused"}) {
    INFO(variant);
    Evaluated e(variant);
    check_follows(e, [&] { e.lora->parameters()[0].mul_(2); });
    check_follows(e, [&] {
      Tensor last = e.lora->parameters().back();
      last.data().mul_(-3);
      last.unsafeGetTensorImpl()->bump_version();
    });
    check_follows(e, [&] { e.model->parameters()[0].add_(0.5); });
    check_follows(e, [&] { e.lora->adapters()[0]->set_scale(3); });
    check_follows(e, [&] { e.lora->set_active({{"default", 0.25}}); });
    e.lora->add("second", variant, LoRAOptions(2), {"0"});
    e.lora->adapters("second")[0]->trained()[0].value().data().normal_();
    check_follows(e, [&] { e.lora->set_active({{"second", 1.0}, {"default", 0.1}}); });
  }
}

TEST_CASE("evaluation merges in the second call and then runs at the speed of one product",
          "[inference_cache]") {
  Evaluated e;
  const auto on = e.lora->activate();
  const torch::NoGradGuard no_grad;
  // Of three dimensions, whose product is seen once: aten::addmm would be again below its kernel
  // here.
  const auto forward = [&] { e.model->forward(e.x.unsqueeze(0)); };
  forward();
  CHECK(products(forward) > 1);
  CHECK(products(forward) == 1);
  // In training the weights may change before the next call: nothing is summed for it.
  e.model->train();
  for (auto& parameter : e.lora->parameters()) parameter.mul_(3);
  CHECK(close(e.model->forward(e.x), e.fresh(), 2e-6));
}

TEST_CASE("switching sets costs no copy of the weight, and no sum or product of its size",
          "[inference_cache]") {
  torch::nn::Sequential model(torch::nn::Linear(256, 320));
  model->eval();
  const auto lora = lightlora::patch(*model, "classic", LoRAOptions(2), {"0"}, "one");
  lora->add("two", "classic", LoRAOptions(2), {"0"});
  const torch::NoGradGuard no_grad;
  for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.3);
  const Tensor x = torch::randn({4, 256});
  const auto weight_bytes = static_cast<int64_t>(model->parameters()[0].nbytes());
  using Weights = std::map<std::string, double>;
  const Weights choices[] = {{{"one", 1}}, {{"two", 1}}, {{"one", 0.5}, {"two", -2}}, {}};
  const auto call = [&](const Weights& weights) {
    lora->set_active(weights);
    return lora(model, x);
  };
  std::vector<Tensor> first;
  for (const auto& weights : choices) {
    CHECK(largest_allocation([&] { first.push_back(call(weights)); }) < weight_bytes);
  }
  // The next call of a choice makes the sum that is kept, and then it costs none again.
  CHECK(largest_allocation([&] { call(choices[0]); }) >= weight_bytes);
  for (const auto& weights : choices) call(weights), call(weights);
  std::vector<Tensor> last;
  for (const auto& weights : choices) {
    CHECK(largest_allocation([&] { last.push_back(call(weights)); }) < weight_bytes);
  }
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(close(last[i], first[i], 1e-5));
}

TEST_CASE("half-precision evaluation keeps the weight apart unless it is forced",
          "[inference_cache]") {
  Evaluated e("light", torch::kBFloat16);
  const torch::NoGradGuard no_grad;
  // A delta far below what bf16 resolves beside a weight of 1: merged it is lost.
  e.lora->adapters()[0]->set_scale(1e-4);
  e.model->parameters()[0].fill_(1);
  e.model->parameters()[1].zero_();
  e.x = torch::zeros({1, 24}, torch::kBFloat16);
  e.x[0][0] = 1;
  e.x[0][1] = -1;  // the ones cancel, so that only the delta is left
  CHECK(e.kept().norm().item<double>() > 0);
  e.lora->set_route(Route::merged);
  CHECK(e.kept().norm().item<double>() == 0);
}

TEST_CASE("steps on a parameter bank are seen by evaluation", "[parameter_bank]") {
  Evaluated e;
  lightlora::ParameterBank bank(e.lora->parameters());
  CHECK(bank.values().numel() == 24 * 4 + 40 * 4);
  check_follows(e, [&] { bank.values().mul_(2); });
  check_follows(e, [&] {
    const Tensor moments = torch::zeros_like(bank.values()), steps = torch::ones({});
    bank.gradients().fill_(1);
    at::_fused_adamw_({bank.values()}, {bank.gradients()}, {moments}, {moments.clone()}, {},
                      {steps}, 0.5, 0.9, 0.999, 0, 1e-8, false, false);
    bank.changed();
  });
}
