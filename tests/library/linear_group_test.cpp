// SPDX-License-Identifier: Apache-2.0
// Layers in one product must give what they give one by one, and must be one product.
#include <ATen/record_function.h>
#include <lightlora/packing.h>
#include <lightlora/patch.h>

#include <functional>

#include "support.h"

using lightlora::LoRAOptions;
using torch::Tensor;

namespace {

struct Projections : torch::nn::Module {
  explicit Projections(torch::ScalarType dtype = torch::kDouble, bool bias = false) {
    const auto make = [&](const char* name, int64_t out) {
      return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(12, out).bias(bias)));
    };
    q = make("q", 8);
    k = make("k", 8);
    v = make("v", 10);
    to(dtype);
    for (auto& parameter : parameters()) parameter.set_requires_grad(false);
  }
  std::vector<torch::nn::LinearImpl*> layers() { return {q.get(), k.get(), v.get()}; }

  torch::nn::Linear q{nullptr}, k{nullptr}, v{nullptr};
};

void randomise(const lightlora::Patched& lora, const std::string& name = "default") {
  const torch::NoGradGuard no_grad;
  for (auto& item : lora->named_parameters(name)) item.value().normal_(0, 0.3);
}

// Products of matrices of a call.
int64_t& seen() {
  static int64_t count = 0;
  return count;
}

int64_t products(const std::function<void()>& call) {
  seen() = 0;
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(
      [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
        const std::string name = function.name();
        if (name == "aten::mm" || name == "aten::addmm" || name == "aten::addmm_") ++seen();
        return nullptr;
      }));
  call();
  at::removeCallback(handle);
  return seen();
}

// Outputs, and gradients of x and of what trains.
std::vector<Tensor> run(const std::vector<Tensor>& trained, const Tensor& x,
                        const std::function<std::vector<Tensor>(const Tensor&)>& call) {
  const Tensor leaf = x.detach().clone().requires_grad_();
  auto results = call(leaf);
  std::vector<Tensor> leaves{leaf}, gradients;
  leaves.insert(leaves.end(), trained.begin(), trained.end());
  torch::manual_seed(4);
  for (const auto& y : results) gradients.push_back(torch::randn(y.sizes(), y.options()));
  const auto found = torch::autograd::grad(results, leaves, gradients);
  results.insert(results.end(), found.begin(), found.end());
  return results;
}

void check_equal(Projections& model, const std::vector<Tensor>& trained, const Tensor& x,
                 double tolerance) {
  const auto one_by_one = run(trained, x, [&](const Tensor& leaf) {
    return std::vector<Tensor>{model.q(leaf), model.k(leaf), model.v(leaf)};
  });
  const auto grouped = run(trained, x, [&](const Tensor& leaf) {
    return lightlora::linear_group(leaf, model.layers());
  });
  REQUIRE(grouped.size() == one_by_one.size());
  for (std::size_t i = 0; i < grouped.size(); ++i) {
    INFO("result " << i);
    CHECK(close(grouped[i], one_by_one[i], tolerance));
  }
}

}  // namespace

TEST_CASE("grouped layers equal single ones, with and without adapters", "[linear_group]") {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    const double tolerance = dtype == torch::kDouble ? 1e-12 : dtype == torch::kFloat ? 3e-6 : 3e-2;
    for (const char* variant : {"classic", "light", "fused", "loha"}) {
      INFO(variant << " " << dtype);
      torch::manual_seed(3);
      const auto model = std::make_shared<Projections>(dtype);
      lightlora::group_weights(model->layers());
      const Tensor x = torch::randn({2, 5, 12}).to(dtype);
      check_equal(*model, {}, x, tolerance);
      const auto lora =
          lightlora::patch(*model, variant, LoRAOptions(2).network_alpha(3), {"q", "k", "v"});
      randomise(lora);
      const auto active = lora->activate();
      check_equal(*model, lora->parameters(), x, tolerance);
      lora->set_route(lightlora::Route::merged);
      check_equal(*model, lora->parameters(), x, tolerance);
    }
  }
}

TEST_CASE("grouped layers take several adapters, and layers of which some have none",
          "[linear_group]") {
  torch::manual_seed(3);
  const auto model = std::make_shared<Projections>();
  lightlora::group_weights(model->layers());
  const auto lora = lightlora::patch(*model, "classic", LoRAOptions(2), {"q", "k", "v"});
  lora->add("second", "light", LoRAOptions(3), {"q", "k", "v"});
  lora->add("third", "classic", LoRAOptions(1), {"v"});
  for (const char* name : {"default", "second", "third"}) randomise(lora, name);
  const Tensor x = torch::randn({5, 12}, torch::kDouble);
  for (const auto& weights :
       std::vector<std::map<std::string, double>>{{{"default", 0.5}, {"second", 2.0}},
                                                  {{"second", 1.0}, {"third", 1.0}},
                                                  {{"third", 1.0}}}) {
    lora->set_active(weights);
    const auto active = lora->activate();
    std::vector<Tensor> trained;
    for (const auto& item : weights) {
      for (const auto& parameter : lora->named_parameters(item.first)) {
        trained.push_back(parameter.value());
      }
    }
    check_equal(*model, trained, x, 1e-12);
  }
}

TEST_CASE("grouped layers are one product, and single ones where they must be", "[linear_group]") {
  const auto model = std::make_shared<Projections>(torch::kFloat);
  const Tensor x = torch::randn({5, 12});
  const auto count = [&] { return products([&] { lightlora::linear_group(x, model->layers()); }); };
  CHECK(count() == 3);
  const Tensor before = model->v->weight.clone();
  lightlora::group_weights(model->layers());
  CHECK(torch::equal(model->v->weight, before));
  CHECK(count() == 1);
  const auto lora = lightlora::patch(*model, "classic", LoRAOptions(4), {"q", "k", "v"});
  {
    const auto active = lora->activate();
    CHECK(count() == 3);  // the product, down and up: rank 12 has no CPU kernel of its own
    lora->train(true);
  }
  // A changed weight is seen, a cast one is right and no longer grouped.
  {
    const torch::NoGradGuard no_grad;
    model->k->weight.mul_(2);
  }
  CHECK(close(lightlora::linear_group(x, model->layers())[1], torch::linear(x, model->k->weight),
              1e-6));
  model->to(torch::kDouble);
  const Tensor wide = x.to(torch::kDouble);
  CHECK(close(lightlora::linear_group(wide, model->layers())[1],
              torch::linear(wide, model->k->weight), 1e-12));
  CHECK(products([&] { lightlora::linear_group(wide, model->layers()); }) == 3);

  const auto biased = std::make_shared<Projections>(torch::kFloat, /*bias=*/true);
  lightlora::group_weights(biased->layers());
  CHECK(close(lightlora::linear_group(x, biased->layers())[2],
              torch::linear(x, biased->v->weight, biased->v->bias), 1e-6));
  torch::nn::Linear narrow(7, 8);
  auto odd = model->layers();
  odd.push_back(narrow.get());
  REQUIRE_THROWS_WITH(lightlora::group_weights(odd),
                      ContainsSubstring("expected layers with 12 inputs"));
}
