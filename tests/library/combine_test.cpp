// SPDX-License-Identifier: Apache-2.0
// What one does with finished adapters, and what training takes beside them.
#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

torch::nn::Sequential small_model() {
  torch::manual_seed(4);
  return torch::nn::Sequential(torch::nn::Linear(40, 30), torch::nn::ReLU(),
                               torch::nn::Linear(30, 20));
}

// Sets "a" (0 and 2) and "b" (0 only), with values that are not zero.
Patched two_sets(torch::nn::Sequential& model, const char* a = "classic",
                 const char* b = "classic") {
  auto lora = patch(*model, a, LoRAOptions(3).network_alpha(1.5), Targets::all_linear(), "a");
  lora->add("b", b, LoRAOptions(3).network_alpha(6), {"0"});
  torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.3);
  return lora;
}

Tensor with(const Patched& lora, torch::nn::Sequential& model,
            const std::map<std::string, double>& weights) {
  torch::NoGradGuard no_grad;
  lora->set_active(weights);
  return lora(model, random_input({6, 40}).to(torch::kFloat));
}

}  // namespace

TEST_CASE("combine: cat and svd give the weighted sum, negative weights too", "[combine]") {
  const std::map<std::string, double> weights{{"a", 0.7}, {"b", -0.4}};
  for (const char* variant : {"classic", "light", "loha", "lokr", "ia3"}) {
    INFO(variant);
    auto model = small_model();
    const auto lora = two_sets(model, variant, "classic");
    const Tensor expected = with(lora, model, weights);
    const bool factors = lora->adapters("a")[0]->has_factors();
    combine(lora, "svd", weights, Combine::svd);
    CHECK(lora->active() == weights);
    CHECK(close(with(lora, model, {{"svd", 1}}), expected, 1e-5));
    if (factors) {
      combine(lora, "cat", weights, Combine::cat);
      CHECK(close(with(lora, model, {{"cat", 1}}), expected, 1e-5));
      CHECK(lora->adapters("cat")[0]->rank() == lora->adapters("a")[0]->rank() + 3);
      CHECK(lora->adapters("cat")[1]->rank() == lora->adapters("a")[1]->rank());
    } else {
      CHECK_THROWS_WITH(combine(lora, "cat", weights, Combine::cat),
                        ContainsSubstring("'0': expected variants with low-rank factors"));
    }
  }
}

// PEFT's OFT and BOFT have no add_weighted_adapter, and two that are active there turn one after the
// other; here they add their deltas up, as all variants do.
TEST_CASE("combine: rotations add up as deltas where the model is known, and else not at all",
          "[combine]") {
  const std::map<std::string, double> weights{{"a", 1}, {"b", 0.5}};
  for (const char* variant : {"oft", "diag_oft", "boft"}) {
    INFO(variant);
    auto model = small_model();
    const auto lora = two_sets(model, variant, variant);
    const Tensor expected = with(lora, model, weights);
    combine(lora, "svd", weights, Combine::svd);
    CHECK(close(with(lora, model, {{"svd", 1}}), expected, 1e-5));
    CHECK_THROWS_WITH(combine(lora, "cat", weights, Combine::cat),
                      ContainsSubstring("expected variants with low-rank factors"));
    const AdapterState a{state_of(*lora->adapters("a")[0])}, b{state_of(*lora->adapters("b")[0])};
    CHECK_THROWS_WITH(sum({{a, 1}, {b, 1}}, Combine::svd),
                      ContainsSubstring("'0': expected the layer's weight, which the delta of"));
  }
}

TEST_CASE("combine: linear sums the factors with the roots of the weights, as PEFT does",
          "[combine]") {
  auto model = small_model();
  const auto lora = two_sets(model);
  combine(lora, "c", {{"a", 0.7}, {"b", 0.4}}, Combine::linear);
  const auto factors = [&](const std::string& set) { return lora->adapters(set)[0]->factors(); };
  const double wa = std::sqrt(0.7 * 0.5), wb = std::sqrt(0.4 * 2.0);  // weight times scale
  CHECK(close(factors("c").down, factors("a").down * wa + factors("b").down * wb, 1e-6));
  CHECK(close(factors("c").up, factors("a").up * wa + factors("b").up * wb, 1e-6));
  lora->add("d", "classic", LoRAOptions(4), {"0"});
  CHECK_THROWS_WITH(combine(lora, "e", {{"a", 1}, {"d", 1}}, Combine::linear),
                    ContainsSubstring("'0': expected adapters of one rank") &&
                        ContainsSubstring("got 3 and 4; hint: use cat or svd"));
  CHECK_THROWS_WITH(combine(lora, "c", {{"a", 1}}, Combine::cat),
                    ContainsSubstring("a second time"));
}

TEST_CASE("to_classic: any variant, exact when the rank suffices, best otherwise", "[combine]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = small_model();
    const auto lora = patch(*model, recipe.variant, recipe.options, {"0"});
    randomise(lora);
    torch::NoGradGuard no_grad;
    const Tensor delta = lora->adapters()[0]->delta(lora->weight_of("0"));
    const auto values = torch::linalg_svdvals(delta.to(torch::kDouble));
    for (const int64_t rank : {1, 5, 30}) {
      const auto classic = make_adapter(to_classic(lora, Keep::rank(rank))[0]);
      CHECK(classic->rank() <= rank);
      const double best = (values.slice(0, rank).norm() / values.norm()).item<double>();
      CHECK(std::abs(relative_error(classic->delta(), delta) - best) < 1e-5);
    }
    const auto shares = values.square().cumsum(0) / values.square().sum();
    const auto kept = make_adapter(to_classic(lora, Keep::energy(0.9))[0])->rank();
    CHECK(kept == (shares < 0.9).sum().item<int64_t>() + 1);
  }
  CHECK_THROWS_WITH(Keep::energy(1.5), ContainsSubstring("expected 0 < energy <= 1, got 1.5"));
  CHECK_THROWS_WITH(Keep::rank(0), ContainsSubstring("expected rank >= 1, got 0"));
}

TEST_CASE("extract: the difference of two models, as exact as the rank allows", "[combine]") {
  auto base = small_model(), tuned = small_model();
  torch::NoGradGuard no_grad;
  torch::manual_seed(8);
  const Tensor change = torch::randn({30, 3}).mm(torch::randn({3, 40})) * 0.1;
  tuned->ptr<torch::nn::LinearImpl>(0)->weight.add_(change);
  const auto state = extract(*base, *tuned, Targets::all(), Keep::energy(0.99999));
  REQUIRE(state.size() == 1);  // the other layer is equal in both
  CHECK(state[0].layer.name == "0");
  CHECK(state[0].options.rank() == 3);
  const Tensor x = random_input({6, 40}).to(torch::kFloat);
  const auto lora = patch(*base, state);
  CHECK(close(lora(base, x), tuned->forward(x), 1e-5));
  auto same = small_model(), equal = small_model();
  CHECK_THROWS_WITH(extract(*same, *equal, Targets::all(), Keep::all()),
                    ContainsSubstring("expected models that differ"));
  torch::nn::Sequential other(torch::nn::Linear(41, 30), torch::nn::ReLU(),
                              torch::nn::Linear(30, 20));
  CHECK_THROWS_WITH(extract(*same, *other, Targets::all(), Keep::all()),
                    ContainsSubstring("'0': expected a weight [30, 40]"));
}

TEST_CASE("limit_norm: deltas above the limit come down to it, others stay", "[combine]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = small_model();
    const auto lora = patch(*model, recipe.variant, recipe.options, Targets::all_linear());
    randomise(lora);
    const auto norm = [&](std::size_t i) {
      const auto adapter = lora->adapters()[i];
      return adapter->added(lora->weight_of(adapter->layer().name)).norm().item<double>();
    };
    const double smaller = std::min(norm(0), norm(1)), larger = std::max(norm(0), norm(1));
    const double limit = 0.5 * (smaller + larger);
    const auto report = limit_norm(lora, limit);
    CHECK(report.scaled == 1);
    CHECK(std::abs(report.largest / limit - 1) < 1e-6);
    CHECK(std::abs(std::max(norm(0), norm(1)) / limit - 1) < 1e-4);
    CHECK(std::abs(std::min(norm(0), norm(1)) / smaller - 1) < 1e-6);
  }
}

TEST_CASE("param_groups: the output side gets its own rate", "[combine]") {
  auto model = small_model();
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(3).dora(true), Targets::all_linear());
  auto groups = param_groups(lora, torch::optim::AdamWOptions(1e-3).weight_decay(0.25), 16);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].params().size() == 4);  // down and magnitude of two layers
  CHECK(groups[1].params().size() == 2);
  const auto named = lora->named_parameters();
  CHECK(groups[1].params()[0].is_same(named["0.up"]));
  const auto rate = [&](std::size_t i) {
    return static_cast<torch::optim::AdamWOptions&>(groups[i].options()).lr();
  };
  CHECK(rate(0) == 1e-3);
  CHECK(rate(1) == 16e-3);
  CHECK(static_cast<torch::optim::AdamWOptions&>(groups[1].options()).weight_decay() == 0.25);
  const Tensor down = named["0.down"].clone(), up = named["0.up"].clone();
  torch::optim::AdamW optimizer(groups, torch::optim::AdamWOptions(1e-3));
  lora(model, torch::ones({2, 40})).sum().backward();
  optimizer.step();
  CHECK_FALSE(torch::equal(named["0.up"], up));
}

TEST_CASE("torch::save and torch::load keep every set of a patched model", "[combine]") {
  auto model = small_model();
  const auto lora = two_sets(model, "light", "lokr");
  std::stringstream stream;
  torch::save(lora, stream);
  auto other = small_model();
  auto loaded =
      patch(*other, "light", LoRAOptions(3).network_alpha(1.5), Targets::all_linear(), "a");
  CHECK_THROWS_WITH(
      [&] {
        auto wrong = patch(*small_model(), "light", LoRAOptions(2), {"0"}, "a");
        std::stringstream again(stream.str());
        torch::load(wrong, again);
      }(),
      ContainsSubstring("'0.down': expected a tensor [2, 40] in the archive"));
  loaded->add("b", "lokr", LoRAOptions(3).network_alpha(6), {"0"});
  torch::load(loaded, stream);
  const std::map<std::string, double> both{{"a", 1}, {"b", 1}};
  CHECK(torch::equal(with(loaded, other, both), with(lora, model, both)));
}

TEST_CASE("checkpoint: adapters get the gradients that they get without it", "[combine]") {
  for (const bool packs : {false, true}) {
    for (const bool alive : {false, true}) {
      INFO((packs ? "packed" : "plain") << (alive ? ", active during backward" : ""));
      torch::manual_seed(4);
      torch::nn::Sequential model(torch::nn::Linear(40, 30), torch::nn::Linear(30, 40));
      const auto lora = patch<LightLoRA>(*model, 3, Targets::all_linear());
      randomise(lora);
      const Tensor x = random_input({6, 40}).to(torch::kFloat).requires_grad_();
      const auto drop = [&](const Tensor& t) {
        return torch::dropout(model->forward(t), 0.3, true);
      };
      const auto gradients = [&](bool checkpointed) {
        for (auto& parameter : lora->parameters()) parameter.mutable_grad() = Tensor();
        x.mutable_grad() = Tensor();
        torch::manual_seed(6);
        const auto packing = packs ? pack_weights(*model).activate() : Packing();
        std::optional<Activation> on(lora->activate());
        const Tensor y = checkpointed ? checkpoint(lora, drop, x) : drop(x);
        if (!alive) on.reset();
        y.square().sum().backward();
        std::vector<Tensor> result{y.detach(), x.grad().clone()};
        for (auto& parameter : lora->parameters()) result.push_back(parameter.grad().clone());
        return result;
      };
      const auto plain = gradients(false), again = gradients(true);
      for (std::size_t i = 0; i < plain.size(); ++i) CHECK(close(again[i], plain[i], 1e-6));
    }
  }
}
