// SPDX-License-Identifier: Apache-2.0
// What every variant must do on every layer type. A variant in the list is a variant tested.
#include <ATen/autocast_mode.h>

#include <thread>

#include "models.h"

using namespace lightlora_tests;
using lightlora::LoRAOptions;
using lightlora::patch;

namespace {

// Two routes of one result in double differ by rounding alone.
constexpr double kDouble = 1e-12;

// The properties hold wherever the layers are; CTest runs them on the CPU and on the simulated GPU.
torch::Device test_device() {
  const char* name = std::getenv("LIGHTLORA_TEST_DEVICE");
  return name ? torch::Device(name) : torch::Device(torch::kCPU);
}

torch::nn::Sequential model_of(const Subject& subject, torch::ScalarType dtype) {
  auto model = subject.model(dtype);
  model->to(test_device());
  return model;
}

struct Case {
  torch::nn::Sequential model;
  lightlora::Patched lora;
  Tensor x;

  Case(const Recipe& recipe, const Subject& subject,
       torch::ScalarType dtype = torch::kDouble)
      : model(model_of(subject, dtype)),
        lora(patch(*model, recipe.variant, recipe.options, {"0"})),
        x(subject.x(dtype).to(test_device())) {}

  Tensor base() { return model->forward(x); }
  Tensor adapted() { return lora(model, x); }
  std::shared_ptr<lightlora::Adapter> adapter() const { return lora->adapters()[0]; }
  // The layer's weight as a matrix, which the delta of some variants depends on.
  Tensor weight() const { return lora->weight_of("0"); }
  Tensor delta() const { return adapter()->delta(weight()); }
};

}  // namespace

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
                        ContainsSubstring("'0': expected the layer's weight, which the delta of"));
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
    if (subject.name == "EmbeddingBag of maxima") return;  // other rows may be the largest then
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
      // DoRA takes the lengths of the rows as constants, so only its magnitudes have true gradients.
      if (recipe.options.dora() && item.key() != "0.magnitude") continue;
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
    for (const char* kind : {"Linear", "drop-in Linear"}) {
      for (const auto& subject : subjects()) {
        if (subject.name != kind) continue;
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
}

TEST_CASE("drop-in layers and patched plain layers give the same numbers", "[properties]") {
  const std::pair<const char*, const char*> pairs[] = {{"Linear", "drop-in Linear"},
                                                       {"Conv2d", "drop-in Conv2d"}};
  const auto find = [](const std::string& name) -> const Subject& {
    return *std::find_if(subjects().begin(), subjects().end(),
                         [&](const Subject& subject) { return subject.name == name; });
  };
  for (const auto& recipe : recipes()) {
    for (const auto& [plain_name, drop_in_name] : pairs) {
      INFO(recipe.name << ": " << drop_in_name);
      Case plain(recipe, find(plain_name));
      Case drop_in(recipe, find(drop_in_name));
      randomise(plain.lora);
      randomise(drop_in.lora);
      REQUIRE(close(drop_in.base(), plain.base(), kDouble));
      const Tensor expected = plain.adapted();
      CHECK(close(drop_in.adapted(), expected, kDouble));
      expected.square().sum().backward();
      drop_in.adapted().square().sum().backward();
      const auto a = plain.lora->parameters(), b = drop_in.lora->parameters();
      for (std::size_t i = 0; i < a.size(); ++i) CHECK(close(b[i].grad(), a[i].grad(), kDouble));
    }
  }
}

namespace {

// The same adapter over the same layer with its weight bound: autograd over the plain composition.
Case composed(const Recipe& recipe, const Subject& subject, torch::ScalarType dtype) {
  Case c(recipe, subject, dtype);
  randomise(c.lora);
  c.lora->bind_weights({"0"});
  return c;
}

// The output, gradients of what trains and of x, and derivatives of the gradients' squares.
std::vector<Tensor> derivatives(Case& c, bool integer_input) {
  std::vector<Tensor> leaves;
  for (const auto& parameter : c.lora->parameters()) leaves.push_back(parameter);
  if (!integer_input) leaves.push_back(c.x.requires_grad_());
  const Tensor y = c.adapted();
  const auto first = torch::autograd::grad({y.tanh().sum()}, leaves, {}, /*retain_graph=*/true,
                                           /*create_graph=*/true);
  Tensor penalty = torch::zeros({}, y.options());
  for (const auto& gradient : first) penalty = penalty + gradient.square().sum();
  auto result = torch::autograd::grad({penalty}, leaves, {}, true, false, /*allow_unused=*/true);
  result.insert(result.end(), first.begin(), first.end());
  result.push_back(y);
  return result;
}

}  // namespace

TEST_CASE("first and second derivatives are those of the plain composition", "[properties]") {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for_each_case([&](const Recipe& recipe, const Subject& subject) {
      // LibTorch trains no bound table with sparse gradients, and derives bags once only.
      if (subject.name == "Embedding with padding and sparse gradients") return;
      if (subject.name.find("Bag") != std::string::npos) return;
      Case ours(recipe, subject, dtype), plain = composed(recipe, subject, dtype);
      randomise(ours.lora);
      const auto found = derivatives(ours, subject.integer_input);
      const auto expected = derivatives(plain, subject.integer_input);
      REQUIRE(found.size() == expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (!found[i].defined() && !expected[i].defined()) continue;
        REQUIRE((found[i].defined() && expected[i].defined()));
        CHECK(close(found[i], expected[i], dtype == torch::kDouble ? 1e-9 : 2e-4));
      }
    });
  }
}

TEST_CASE("gradients are the same while the adapters are active as afterwards", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    if (!subject.integer_input) c.x.requires_grad_();
    auto leaves = c.lora->parameters();
    if (!subject.integer_input) leaves.push_back(c.x);
    const auto expected = torch::autograd::grad({c.adapted().tanh().sum()}, leaves);
    const auto on = c.lora->activate();
    const auto found = torch::autograd::grad({c.model->forward(c.x).tanh().sum()}, leaves);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], kDouble));
  });
}

TEST_CASE("the output of an adapted layer may be changed in place", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const auto leaves = c.lora->parameters();
    const auto expected = torch::autograd::grad({(c.adapted() + 1).relu().sum()}, leaves);
    Tensor y = c.adapted();
    y += 1;
    y.relu_();
    const auto found = torch::autograd::grad({y.sum()}, leaves);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], kDouble));
  });
}

TEST_CASE("a weight that is replaced, moved in memory or cast between two calls is followed",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject), twin(recipe, subject);
    randomise(c.lora);
    randomise(twin.lora);
    const torch::NoGradGuard no_grad;
    c.adapted();
    for (auto* one : {&c, &twin}) {
      Tensor weight = one->model->parameters()[0];
      weight.set_data(weight * 2 + 0.1);
    }
    twin.lora->merge();
    CHECK(close(c.adapted(), twin.base(), kDouble));
    c.model->to(torch::kFloat);
    if (!subject.integer_input) c.x = c.x.to(torch::kFloat);
    CHECK(close(c.adapted(), twin.base(), 1e-5));
  });
}

TEST_CASE("threads use one model at once, each with its own adapters or none", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    c.lora->add("second", recipe.variant, recipe.options, {"0"});
    randomise(c.lora);
    const std::map<std::string, double> choices[] = {{{"default", 1}}, {{"second", 0.5}}, {}};
    std::vector<Tensor> expected(3), gradients(3), found(3);
    const auto run = [&](int i) {
      const auto on = c.lora->activate(choices[i]);
      return c.model->forward(c.x);
    };
    for (int i = 0; i < 3; ++i) expected[i] = run(i).detach();
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        for (int repeat = 0; repeat < 5; ++repeat) found[i] = run(i);
      });
    }
    for (auto& thread : threads) thread.join();
    for (int i = 0; i < 3; ++i) CHECK(close(found[i].detach(), expected[i], kDouble));
    CHECK(torch::equal(found[2], c.base()));
  });
}

TEST_CASE("checkpointed layers get the gradients of the plain call, also after the activation",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (subject.integer_input) return;
    Case c(recipe, subject);
    randomise(c.lora);
    c.x.requires_grad_();
    auto leaves = c.lora->parameters();
    const auto expected = torch::autograd::grad({c.adapted().tanh().sum()}, leaves);
    Tensor y;
    {
      const auto on = c.lora->activate();
      y = lightlora::recompute(
          [&](const std::vector<Tensor>& inputs) { return c.model->forward(inputs[0]); }, {c.x});
    }
    y.tanh().sum().backward();
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      CHECK(close(leaves[i].grad(), expected[i], kDouble));
    }
  });
}

TEST_CASE("rows of a batch have different adapters, or none, and train them", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (subject.name.find("Bag") != std::string::npos) return;  // refused, see interception_test
    Case c(recipe, subject);
    c.lora->add("second", recipe.variant,
                LoRAOptions(recipe.options).rank(2), {"0"});
    randomise(c.lora);
    const Tensor x = torch::cat({c.x, c.x, c.x}).narrow(0, 0, 3);
    const std::vector<std::string> names{"default", "second"};
    const auto alone = [&](const std::map<std::string, double>& weights, int64_t row) {
      const auto on = c.lora->activate(weights);
      return c.model->forward(x.narrow(0, row, 1));
    };
    const Tensor expected = torch::cat(
        {alone({{"second", 1}}, 0), alone({}, 1), alone({{"default", 1}}, 2)});
    const auto leaves = c.lora->parameters();
    const auto wanted = torch::autograd::grad({expected.tanh().sum()}, leaves);
    const auto on = c.lora->activate_rows(names, torch::tensor({1, -1, 0}, torch::kLong));
    const Tensor y = c.model->forward(x);
    CHECK(close(y, expected, kDouble));
    const auto found = torch::autograd::grad({y.tanh().sum()}, leaves);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], wanted[i], 1e-10));
  });
}

TEST_CASE("inference mode, no_grad and autograd give one result", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const Tensor expected = c.adapted().detach();
    c.model->eval();
    {
      const torch::NoGradGuard no_grad;
      for (int i = 0; i < 3; ++i) CHECK(close(c.adapted(), expected, kDouble));
    }
    const c10::InferenceMode inference;
    for (int i = 0; i < 3; ++i) CHECK(close(c.adapted(), expected, kDouble));
  });
}

TEST_CASE("training over bf16 and fp16 weights gives fp32 gradients near the exact ones",
          "[properties]") {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    for_each_case([&](const Recipe& recipe, const Subject& subject) {
      if (subject.name == "EmbeddingBag of maxima") return;  // other rows may win after rounding
      Case exact(recipe, subject, torch::kFloat), half(recipe, subject, torch::kFloat);
      randomise(exact.lora);
      randomise(half.lora);
      half.model->to(dtype);
      if (!subject.integer_input) half.x = half.x.to(dtype);
      exact.adapted().sum().backward();
      const Tensor y = half.adapted();
      CHECK(y.scalar_type() == dtype);
      y.sum().backward();
      const auto a = exact.lora->parameters(), b = half.lora->parameters();
      for (std::size_t i = 0; i < a.size(); ++i) {
        CHECK(b[i].grad().scalar_type() == torch::kFloat);
        CHECK(close(b[i].grad(), a[i].grad(), 5e-2));  // bf16: eight bits, several roundings
      }
    });
  }
}

TEST_CASE("autocast computes in its dtype and gives fp32 gradients", "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject, torch::kFloat);
    randomise(c.lora);
    const Tensor exact = c.adapted().detach();
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const auto dtype = c.base().scalar_type();
    const Tensor y = c.adapted();
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    CHECK(y.scalar_type() == dtype);
    CHECK(close(y, exact, 3e-2));  // eight bits, a few roundings
    y.sum().backward();
    for (const auto& parameter : c.lora->parameters()) {
      CHECK(parameter.grad().scalar_type() == torch::kFloat);
    }
  });
}

TEST_CASE("dropout leaves out inputs of the adapter alone, in training only, and the mean stays",
          "[properties]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (subject.name == "EmbeddingBag of maxima") return;  // a maximum has no inputs to leave out
    Recipe dropping = recipe;
    dropping.options.dropout(0.5);
    Case c(dropping, subject, torch::kFloat);
    randomise(c.lora);
    const torch::NoGradGuard no_grad;
    torch::manual_seed(3);
    const Tensor base = c.base();
    CHECK_FALSE(torch::equal(c.adapted(), c.adapted()));
    Tensor sum = torch::zeros_like(base);
    constexpr int kDraws = 200;
    for (int i = 0; i < kDraws; ++i) sum += c.adapted() - base;
    c.lora->eval();
    const Tensor exact = c.adapted() - base;
    CHECK(torch::equal(c.adapted(), c.adapted()));
    CHECK(close(sum / kDraws, exact, 0.25));  // 1 / sqrt(200) of each draw's spread
  });
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
