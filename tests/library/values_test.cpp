// SPDX-License-Identifier: Apache-2.0
// Trained values as vectors: in and out, from outside, one for each row of a batch; and adapters as
// points whose norms and canonical forms need no delta. What a hypernetwork stands on.
#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

// Linear layers over tokens between convolutions of one and two groups.
struct MixedImpl : torch::nn::Module {
  MixedImpl() {
    using torch::nn::Conv2dOptions;
    grouped = register_module("grouped", torch::nn::Conv2d(Conv2dOptions(4, 8, 3).groups(2)));
    wide = register_module(
        "wide", torch::nn::Conv2d(
                    Conv2dOptions(8, 10, 3).stride(2).padding(1).padding_mode(torch::kCircular)));
    first = register_module("first", torch::nn::Linear(10, 12));
    second = register_module("second", torch::nn::Linear(12, 6));
  }
  Tensor forward(const Tensor& x) {
    const Tensor map = wide(torch::silu(grouped(x)));
    return second(torch::tanh(first(map.flatten(2).transpose(1, 2)))).mean(1);
  }
  torch::nn::Conv2d grouped{nullptr}, wide{nullptr};
  torch::nn::Linear first{nullptr}, second{nullptr};
};
TORCH_MODULE(Mixed);

struct Setting {
  Mixed model;
  Patched lora;
  Tensor x;

  explicit Setting(const std::string& variant) {
    torch::manual_seed(3);
    model = Mixed();
    model->to(torch::kDouble);
    auto options = LoRAOptions(2).network_alpha(3);
    if (variant != "classic") options = options.own({{"aux_in", "7"}, {"aux_out", "5"}});
    lora = patch(*model, variant, options, {"grouped", "wide", "first", "second"});
    x = random_input({3, 4, 6, 6});
  }
  Tensor random_values(std::vector<int64_t> batch) const {
    torch::manual_seed(17);
    batch.push_back(lora->values().numel());
    return 0.3 * torch::randn(batch, torch::kDouble);
  }
  Tensor with(const Tensor& values) {
    const auto on = lora->activate_values(values);
    return model->forward(x);
  }
};

const std::vector<std::string> kTaking{"classic", "light", "fused"};

Patched patched_linear(torch::nn::Sequential& model, const std::string& variant, uint64_t seed,
                       const LoRAOptions& options = LoRAOptions(3).network_alpha(6)) {
  auto lora = patch(*model, variant, options, Targets::all_linear());
  torch::NoGradGuard no_grad;
  torch::manual_seed(seed);
  for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.3);
  return lora;
}

torch::nn::Sequential two_layers() {
  return torch::nn::Sequential(torch::nn::Linear(20, 14), torch::nn::Linear(14, 9));
}

AdapterState random_state(const std::string& variant, uint64_t seed) {
  auto model = two_layers();
  return patched_linear(model, variant, seed)->state();
}

// All deltas of a state, one after the other, formed.
Tensor formed(const AdapterState& state) {
  torch::NoGradGuard no_grad;
  std::vector<Tensor> deltas;
  for (const auto& layer : state) {
    deltas.push_back(make_adapter(layer)->delta().to(torch::kDouble).flatten());
  }
  return torch::cat(deltas);
}

}  // namespace

TEST_CASE("values: a set is one vector in the order of its parameters, and back", "[values]") {
  for (const auto& variant : kTaking) {
    INFO(variant);
    Setting s(variant);
    const Tensor values = s.random_values({});
    s.lora->assign(values);
    CHECK(torch::equal(s.lora->values(), values));
    int64_t start = 0;
    for (const auto& item : s.lora->named_parameters()) {
      const int64_t count = item.value().numel();
      CHECK(torch::equal(item.value().flatten(), values.narrow(0, start, count)));
      start += count;
    }
    CHECK_THROWS_WITH(s.lora->assign(values.narrow(0, 1, values.numel() - 1)),
                      ContainsSubstring("values for the set 'default'"));
  }
}

TEST_CASE(
    "values: from outside they compute what the set computes that holds them, and get its "
    "gradients",
    "[values]") {
  for (const auto& variant : kTaking) {
    INFO(variant);
    Setting s(variant);
    const Tensor values = s.random_values({}).requires_grad_();
    const Tensor y = s.with(values);
    y.square().sum().backward();
    CHECK(torch::equal(s.lora->values(), Setting(variant).lora->values()));  // untouched
    s.lora->assign(values.detach());
    const Tensor expected = s.lora(s.model, s.x);
    CHECK(close(y, expected, 1e-12));
    expected.square().sum().backward();
    std::vector<Tensor> gradients;
    for (const auto& item : s.lora->named_parameters()) {
      gradients.push_back(item.value().grad().flatten());
    }
    CHECK(values.grad().norm().item<double>() > 0);
    CHECK(close(values.grad(), torch::cat(gradients), 1e-12));
  }
}

TEST_CASE("values: each row of a batch has its own, in one pass", "[values]") {
  for (const auto& variant : kTaking) {
    INFO(variant);
    Setting s(variant);
    const Tensor values = s.random_values({3}).requires_grad_();
    const Tensor y = s.with(values);
    y.square().sum().backward();
    const Tensor all = s.x;
    for (int64_t row = 0; row < 3; ++row) {
      INFO("row " << row);
      const Tensor own = values.detach()[row].clone().requires_grad_();
      s.x = all.narrow(0, row, 1);
      const Tensor expected = s.with(own);
      CHECK(close(y.narrow(0, row, 1), expected, 1e-12));
      expected.square().sum().backward();
      CHECK(close(values.grad()[row], own.grad(), 1e-12));
    }
    CHECK_FALSE(close(y[0], s.model->forward(all)[0], 1e-6));
  }
}

TEST_CASE("values: half precision and linear layers over plain rows take them too", "[values]") {
  auto model = two_layers();
  auto lora = patched_linear(model, "light", 5);
  const Tensor x = random_input({4, 20}).to(torch::kFloat);
  torch::manual_seed(8);
  const Tensor values = 0.3 * torch::randn({4, lora->values().numel()});
  const auto with = [&](const Tensor& input) {
    const auto on = lora->activate_values(values);
    return model->forward(input);
  };
  const Tensor expected = with(x);
  for (int64_t row = 0; row < 4; ++row) {
    lora->assign(values[row]);
    CHECK(close(expected[row], lora(model, x.narrow(0, row, 1))[0], 1e-5));
  }
  model->to(torch::kBFloat16);
  const Tensor half = with(x.to(torch::kBFloat16));
  CHECK(half.scalar_type() == torch::kBFloat16);
  CHECK(close(half.to(torch::kFloat), expected, 3e-2));
}

TEST_CASE("values: what does not fit is said", "[values]") {
  Setting s("light");
  const Tensor values = s.random_values({2});
  CHECK_THROWS_WITH(s.with(values), ContainsSubstring("'grouped': expected 2 rows first"));
  CHECK_THROWS_WITH(s.with(values.narrow(1, 0, 5)), ContainsSubstring("or a batch of them"));
  CHECK_THROWS_WITH(s.lora->activate_values(values, "other"), ContainsSubstring("'other'"));
  s.lora->merge();
  CHECK_THROWS_WITH(s.with(values), ContainsSubstring("unmerge"));
  s.lora->unmerge();
  auto model = two_layers();
  auto loha = patched_linear(model, "loha", 1);
  CHECK_THROWS_WITH(loha->activate_values(loha->values()), ContainsSubstring("got loha"));
  loha->remove();
  const auto dora = patched_linear(model, "classic", 1, LoRAOptions(2).dora(true));
  CHECK_THROWS_WITH(dora->activate_values(dora->values()), ContainsSubstring("DoRA"));
  torch::nn::Sequential words(torch::nn::Embedding(9, 5));
  auto lookup = patch(*words, "classic", LoRAOptions(2), {"0"});
  CHECK_THROWS_WITH(
      lookup->activate_values(lookup->values()),
      ContainsSubstring("'0': values from outside cannot be combined with Embedding"));
}

TEST_CASE("norms, products and distances of deltas are those of the formed ones", "[values]") {
  for (const char* variant : {"classic", "light", "fused", "loha", "lokr"}) {
    INFO(variant);
    const auto a = random_state(variant, 1), b = random_state("classic", 2);
    const Tensor da = formed(a), db = formed(b);
    CHECK(std::abs(delta_norm(a) / da.norm().item<double>() - 1) < 1e-6);
    CHECK(std::abs(delta_product(a, b) - da.dot(db).item<double>()) <
          1e-6 * da.norm().item<double>() * db.norm().item<double>());
    CHECK(std::abs(delta_distance(a, b) / (da - db).norm().item<double>() - 1) < 1e-6);
    CHECK(delta_distance(a, a) < 1e-6 * delta_norm(a));
  }
  auto a = random_state("light", 1);
  const auto whole = delta_norm(a);
  AdapterState first{a[0]}, second{a[1]};
  CHECK(delta_product(first, second) == 0);
  CHECK(std::abs(std::hypot(delta_norm(first), delta_norm(second)) / whole - 1) < 1e-12);
  second[0].layer = a[0].layer;
  CHECK_THROWS(delta_product(first, second));
}

TEST_CASE("canonical: equal deltas have equal values, whatever their factors were", "[values]") {
  for (const char* variant : {"classic", "light"}) {
    INFO(variant);
    auto state = random_state(variant, 3);
    const auto expected = canonical(state);
    CHECK(close(formed(expected), formed(state), 1e-5));
    for (auto& layer : state) {
      // up A^-1 and A down are the same delta, and so are half of it at twice the scale.
      torch::manual_seed(9);
      const Tensor a = torch::randn({3, 3}) + 3 * torch::eye(3);
      layer.trained["down"] = a.mm(layer.trained["down"]);
      layer.trained["up"] = layer.trained["up"].mm(torch::inverse(a)) / 2;
      layer.scale *= 2;
    }
    const auto again = canonical(state);
    REQUIRE(again.size() == 2);
    for (size_t i = 0; i < 2; ++i) {
      CHECK(again[i].variant == variant);
      CHECK(again[i].scale == 1);
      CHECK(again[i].trained.at("up").sizes() == state[i].trained.at("up").sizes());
      for (const char* name : {"down", "up"}) {
        CHECK(close(again[i].trained.at(name), expected[i].trained.at(name), 1e-4));
      }
      // Columns by falling length, each with its largest entry positive.
      const Tensor up = again[i].trained.at("up"), lengths = up.norm(2, 0);
      CHECK((lengths.diff() <= 0).all().item<bool>());
      const Tensor largest = up.gather(0, up.abs().argmax(0, true));
      CHECK((largest > 0).all().item<bool>());
    }
  }
  // A core is unique already; what starts at zero stays a finite zero.
  const auto fused = random_state("fused", 4);
  CHECK(torch::equal(canonical(fused)[0].trained.at("down_up"), fused[0].trained.at("down_up")));
  auto model = two_layers();
  const auto start = canonical(patch(*model, "light", LoRAOptions(3), {"0"})->state());
  CHECK(start[0].trained.at("up").abs().max().item<double>() == 0);
  CHECK(start[0].trained.at("down").isfinite().all().item<bool>());
  CHECK(canonical(random_state("lokr", 5))[0].variant == "classic");
}
