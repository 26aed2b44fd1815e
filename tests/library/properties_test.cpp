// SPDX-License-Identifier: Apache-2.0
// What every variant must do on every layer type. A variant in the list is a variant tested.
#include "cases.h"

using namespace lightlora_tests;
using lightlora::LoRAOptions;
using lightlora::patch;

TEST_CASE("a new adapter is the identity, bit for bit", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject, torch::kFloat);
    CHECK(torch::equal(c.adapted(), c.base()));
  });
}

TEST_CASE("the delta is scale times the composed factors, where a variant has factors",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const auto adapter = c.adapter();
    CHECK(adapter->scale() == 0.5);
    CHECK(c.delta().sizes() == torch::IntArrayRef({adapter->layer().out, adapter->layer().in}));
    CHECK(c.delta().norm().item<double>() > 0.1);
    if (adapter->needs_weight()) {
      CHECK_THROWS_WITH(adapter->delta(),
                        ContainsSubstring("'" + subject.path +
                                          "': expected the layer's weight, which the delta of"));
    }
    if (!adapter->has_factors()) return;
    const auto factors = adapter->factors();
    CHECK(factors.down.sizes() == torch::IntArrayRef({adapter->rank(), adapter->layer().in}));
    CHECK(factors.up.sizes() == torch::IntArrayRef({adapter->layer().out, adapter->rank()}));
    CHECK(close(c.delta(), torch::mm(factors.up, factors.down) * 0.5, kDouble));
  });
}

TEST_CASE("the merged model equals the adapted one, and unmerging restores every bit",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const Tensor before = c.base();
    const Tensor weight = c.model->parameters()[0].clone();
    const Tensor adapted = c.adapted();
    CHECK(relative_error(adapted, before) > 1e-3);
    c.lora->merge();
    CHECK(close(c.base(), adapted, kDouble));
    CHECK(torch::equal(c.adapted(), c.base()));
    c.lora->unmerge();
    CHECK(torch::equal(c.model->parameters()[0], weight));
    CHECK(torch::equal(c.base(), before));
  });
}

TEST_CASE("weight 0 gives the base and weight 2 twice the delta, and so does the scale",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (!subject.linear) return;  // twice the delta is not twice the difference then
    Case c(recipe, subject);
    randomise(c.lora);
    const auto weighted = [&](double weight) {
      c.lora->set_active({{"default", weight}});
      return c.adapted() - c.base();
    };
    const Tensor once = weighted(1);
    CHECK(once.norm().item<double>() > 0.01);
    CHECK(weighted(0).norm().item<double>() == 0);
    CHECK(close(weighted(2), 2 * once, 1e-10));
    if (recipe.options.dora()) return;  // its rows have the trained lengths at any scale
    c.lora->set_active({{"default", 1}});
    const auto scaled = [&](double scale) {
      c.adapter()->set_scale(scale);
      return c.adapted() - c.base();
    };
    CHECK(scaled(0).norm().item<double>() == 0);
    CHECK(close(scaled(1), 2 * once, 1e-10));  // 0.5 before
  });
}

TEST_CASE("gradients of every trained tensor agree with finite differences", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const Tensor weights = torch::randn_like(c.base());
    const auto loss = [&] { return (c.adapted().tanh() * weights).sum(); };
    for (const auto& item : c.lora->named_parameters()) {
      INFO(item.key());
      // DoRA takes the lengths of the rows as constants, so only its magnitudes have true
      // gradients.
      if (recipe.options.dora() && item.key() != c.path + ".magnitude") continue;
      CHECK(derivative_error(loss, item.value()) < 1e-6);
    }
    if (!subject.integer_input) {
      c.x.requires_grad_();
      CHECK(derivative_error(loss, c.x) < 1e-6);
    }
  });
}

TEST_CASE("no gradient reaches the base or the frozen bases", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject, torch::kFloat);
    randomise(c.lora);
    c.adapted().square().sum().backward();
    for (const auto& parameter : c.model->parameters()) {
      CHECK_FALSE(parameter.requires_grad());
      CHECK_FALSE(parameter.grad().defined());
    }
    for (const auto& item : c.adapter()->frozen()) {
      CHECK_FALSE(item.value().requires_grad());
      CHECK_FALSE(item.value().grad().defined());
    }
    for (const auto& parameter : c.lora->parameters()) CHECK(parameter.grad().defined());
  });
}

TEST_CASE("training moves every trained tensor and leaves the base as it was", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject, torch::kFloat);
    const Tensor weight = c.model->parameters()[0].clone();
    const Tensor target = c.base() + torch::randn_like(c.base());
    std::vector<Tensor> start;
    for (const auto& parameter : c.lora->parameters()) start.push_back(parameter.clone());
    torch::optim::AdamW optimizer(c.lora->parameters(), torch::optim::AdamWOptions(1e-2));
    double first = 0, last = 0;
    for (int step = 0; step < 30; ++step) {
      optimizer.zero_grad();
      const Tensor loss = torch::mse_loss(c.adapted(), target);
      loss.backward();
      optimizer.step();
      last = loss.item<double>();
      if (step == 0) first = last;
    }
    CHECK(last < first);
    const auto now = c.lora->parameters();
    for (std::size_t i = 0; i < now.size(); ++i) CHECK_FALSE(torch::equal(now[i], start[i]));
    CHECK(torch::equal(c.model->parameters()[0], weight));
  });
}

TEST_CASE("a saved adapter loads into a new model with the same output", "[properties]") {
  const ScratchFolder folder;
  for_each_case([&](const Recipe& recipe, const Subject& subject) {
    for (const auto bases : {lightlora::Bases::by_seed, lightlora::Bases::embedded}) {
      Case c(recipe, subject, torch::kFloat);
      randomise(c.lora);
      const Tensor adapted = c.adapted();
      const auto file = folder.file("adapter.safetensors");
      lightlora::save(c.lora, file, lightlora::SaveOptions().bases(bases));

      Case same_options(recipe, subject, torch::kFloat);
      lightlora::load(same_options.lora, file);
      CHECK(torch::equal(same_options.adapted(), adapted));

      auto fresh = model_of(subject, torch::kFloat);
      auto from_file = patch(*fresh, lightlora::read_state(file));
      CHECK(torch::equal(from_file(fresh, c.x), adapted));
      CHECK(from_file->adapters()[0]->description() == c.adapter()->description());
    }
  });
}

TEST_CASE("classic factors made from an adapter give the same delta", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const auto state = lightlora::to_classic(*c.adapter(), lightlora::Keep::all(), c.weight());
    const auto classic = lightlora::make_adapter(state);
    CHECK(classic->variant() == "classic");
    // The copy is computed in fp32.
    CHECK(close(classic->delta(), c.delta().cpu(), 1e-6));
  });
}

TEST_CASE("half-precision inference stays near the fp32 result", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    // Attention and recurrence round once more in each of their own steps.
    if (!subject.linear && !subject.integer_input) return;
    Case c(recipe, subject, torch::kFloat);
    randomise(c.lora);
    const Tensor exact = c.adapted();
    c.model->to(torch::kBFloat16);
    if (!subject.integer_input) c.x = c.x.to(torch::kBFloat16);
    torch::NoGradGuard no_grad;
    const Tensor half = c.adapted();
    CHECK(half.scalar_type() == torch::kBFloat16);
    for (const auto& parameter : c.lora->parameters()) {
      CHECK(parameter.scalar_type() == torch::kFloat);
    }
    // bf16 has eight bits: 0.4 % for a rounding, a few of them in a row.
    CHECK(close(half, exact, 2e-2));
  });
}

TEST_CASE("the report counts what trains and what the model holds", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    int64_t trained = 0, total = 0;
    for (const auto& parameter : c.lora->parameters()) trained += parameter.numel();
    for (const auto& parameter : c.model->parameters()) total += parameter.numel();
    CHECK(trained > 0);
    CHECK(c.adapter()->trained_count() == trained);
    CHECK(c.lora->report().trainable == trained);
    CHECK(c.lora->report().total == total);
  });
}

TEST_CASE("an adapter's module clones with its values, independent of the first", "[properties]") {
  torch::manual_seed(1);
  const Tensor weight = torch::randn({90, 70});
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    const auto adapter =
        lightlora::find_variant(recipe.variant).make(recipe.options, {"layer", 70, 90, {}});
    adapter->prepare(weight);
    torch::NoGradGuard no_grad;
    for (const auto& item : adapter->trained()) torch::Tensor(item.value()).normal_();
    const Tensor delta = adapter->delta(weight);
    const auto module = adapter->module().clone();
    const auto copy = std::dynamic_pointer_cast<lightlora::Adapter>(module);
    REQUIRE(copy);
    CHECK(torch::equal(copy->delta(weight), delta));
    CHECK(copy->frozen_count() == adapter->frozen_count());
    for (const auto& item : adapter->trained()) torch::Tensor(item.value()).zero_();
    CHECK(torch::equal(copy->delta(weight), delta));
    CHECK_FALSE(torch::equal(adapter->delta(weight), delta));
  }
}

TEST_CASE("2-D, 3-D and empty inputs keep their leading sizes", "[properties]") {
  for (const auto& recipe : recipes()) {
    for (const auto& subject : subjects()) {
      if (subject.name != "Linear") continue;
      INFO(recipe.name << " on " << subject.name);
      Case c(recipe, subject);
      randomise(c.lora);
      const Tensor full = c.adapted();
      const Tensor flat = c.lora(c.model, c.x.reshape({15, 70}));
      CHECK(close(flat, full.reshape({15, 90}), kDouble));
      const Tensor strided = c.x.transpose(0, 1);
      CHECK(close(c.lora(c.model, strided), full.transpose(0, 1), kDouble));
      CHECK(close(c.lora(c.model, c.x[0][0]), full[0][0], kDouble));
      CHECK(c.lora(c.model, torch::empty({0, 70}, c.x.options())).sizes() ==
            torch::IntArrayRef({0, 90}));
      CHECK(c.lora(c.model, torch::empty({0, 5, 70}, c.x.options())).sizes() ==
            torch::IntArrayRef({0, 5, 90}));
    }
  }
}

TEST_CASE("adapters move to the GPU with their results", "[properties][cuda]") {
  if (!torch::cuda::is_available()) {
    WARN("no GPU here: this case checks nothing");
    return;
  }
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const Tensor expected = c.adapted();
    c.model->to(torch::kCUDA);
    c.lora->to(torch::kCUDA);
    c.x = c.x.to(torch::kCUDA);
    CHECK(close(c.adapted(), expected, 1e-10));
  });
}
