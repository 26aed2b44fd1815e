// SPDX-License-Identifier: Apache-2.0
// What every variant must do on every layer type however the layer is called: derivatives of any
// order, in place, over other weights, in threads, in half precision, row by row.
#include <ATen/autocast_mode.h>

#include <thread>

#include "allocations.h"
#include "cases.h"

using namespace lightlora_tests;
using lightlora::LoRAOptions;

namespace {

// The same adapter over the same layer with its weight bound: autograd over the plain composition.
Case composed(const Recipe& recipe, const Subject& subject, torch::ScalarType dtype) {
  Case c(recipe, subject, dtype);
  randomise(c.lora);
  c.lora->bind_weights({subject.path});
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

TEST_CASE("first and second derivatives are those of the plain composition", "[calls]") {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for_each_case([&](const Recipe& recipe, const Subject& subject) {
      // LibTorch trains no bound table with sparse gradients, and derives bags once only.
      if (subject.name == "Embedding with padding and sparse gradients") return;
      if (subject.name.find("Bag") != std::string::npos) return;
      if (subject.recurrent) return;  // a weight in a list cannot be bound
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

TEST_CASE("gradients are the same while the adapters are active as afterwards", "[calls]") {
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

TEST_CASE("the output of an adapted layer may be changed in place", "[calls]") {
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

TEST_CASE("a trained value that changes before the backward pass is an error, or without effect",
          "[calls]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    randomise(c.lora);
    const auto leaves = c.lora->parameters();
    const auto loss = [&] { return c.adapted().tanh().sum(); };
    const auto expected = torch::autograd::grad({loss()}, leaves);
    const Tensor later = loss();
    {
      const torch::NoGradGuard no_grad;
      for (Tensor parameter : leaves) parameter.mul_(2);
    }
    std::vector<Tensor> found;
    try {
      found = torch::autograd::grad({later}, leaves);
    } catch (const c10::Error& error) {
      CHECK_THAT(error.what(), ContainsSubstring("modified by an inplace operation"));
      return;
    }
    // The factors of classic need each other; grouped transposed convolutions work on copies.
    const bool copies = subject.name.rfind("ConvTranspose2d with groups", 0) == 0;
    CHECK((recipe.name != "classic" || copies));
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], kDouble));
  });
}

TEST_CASE("training forms no gradient of the weight's size where a variant has factors",
          "[calls]") {
  if (!test_device().is_cpu()) return;  // other devices do not report what they allocate
  const Subject wide{"wide", [] { return torch::nn::Sequential(torch::nn::Linear(256, 320)); },
                     [] { return random_input({5, 256}); }};
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    Case c(recipe, wide, torch::kFloat);
    if (!c.adapter()->has_factors()) continue;
    randomise(c.lora);
    c.x.requires_grad_();
    const auto weight_bytes = static_cast<int64_t>(c.weight().nbytes());
    Tensor y;
    const auto forward = [&] { y = c.adapted(); };
    const auto backward = [&] { y.square().sum().backward(); };
    c.lora->set_route(lightlora::Route::bypass);
    CHECK(largest_allocation(forward) < weight_bytes);
    CHECK(largest_allocation(backward) < weight_bytes);
    // The gradient of the input would form the sum again.
    c.x = c.x.detach();
    c.lora->set_route(lightlora::Route::merged);  // forms the weight's sum, and no gradient of it
    CHECK(largest_allocation(forward) >= weight_bytes);
    CHECK(largest_allocation(backward) < weight_bytes);
  }
}

TEST_CASE("a weight that is replaced, moved in memory or cast between two calls is followed",
          "[calls]") {
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

TEST_CASE("threads use one model at once, each with its own adapters or none", "[calls]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    Case c(recipe, subject);
    c.lora->add("second", recipe.variant, recipe.options, {subject.path});
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
          "[calls]") {
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

TEST_CASE("rows of a batch have different adapters, or none, and train them", "[calls]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (!subject.known_rows) return;  // refused, see interception_test
    Case c(recipe, subject);
    c.lora->add("second", recipe.variant, LoRAOptions(recipe.options).rank(2), {subject.path});
    randomise(c.lora);
    const Tensor x = torch::cat({c.x, c.x, c.x}).narrow(0, 0, 3);
    const std::vector<std::string> names{"default", "second"};
    const auto alone = [&](const std::map<std::string, double>& weights, int64_t row) {
      const auto on = c.lora->activate(weights);
      return c.model->forward(x.narrow(0, row, 1));
    };
    const Tensor expected =
        torch::cat({alone({{"second", 1}}, 0), alone({}, 1), alone({{"default", 1}}, 2)});
    const auto leaves = c.lora->parameters();
    const auto wanted = torch::autograd::grad({expected.tanh().sum()}, leaves);
    const auto on = c.lora->activate_rows(names, torch::tensor({1, -1, 0}, torch::kLong));
    const Tensor y = c.model->forward(x);
    CHECK(close(y, expected, kDouble));
    const auto found = torch::autograd::grad({y.tanh().sum()}, leaves);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], wanted[i], 1e-10));
  });
}

TEST_CASE("rows of a batch give without gradients what they give with them, in every rank",
          "[calls]") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    for (const int64_t rank : {1, 3, 4, 5, 8, 9}) {
      INFO(dtype << ", rank " << rank);
      torch::manual_seed(2);
      torch::nn::Sequential model(torch::nn::Linear(70, 90));
      model->to(dtype);
      const auto lora = lightlora::patch<lightlora::ClassicLoRA>(*model, rank, {"0"}, "one");
      lora->add<lightlora::ClassicLoRA>("two", 2, {"0"});
      randomise(lora);
      const auto on = lora->activate_rows({"one", "two"}, torch::tensor({1, -1, 0, 0, 1}));
      for (const Tensor& x : {torch::randn({5, 7, 70}).to(dtype), torch::randn({5, 70}).to(dtype),
                              torch::randn({5, 70, 3}).to(dtype).transpose(1, 2)}) {
        const Tensor expected = model->forward(x).detach();
        const torch::NoGradGuard no_grad;
        for (int call = 0; call < 2; ++call) {
          CHECK(close(model->forward(x), expected, dtype == torch::kFloat ? 1e-6 : 1e-2));
        }
      }
    }
  }
}

TEST_CASE("inference mode, no_grad and autograd give one result", "[calls]") {
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
          "[calls]") {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    for_each_case([&](const Recipe& recipe, const Subject& subject) {
      if (!subject.linear) return;  // rounding changes more than the last digit then
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
      const double tolerance = subject.name == "Bilinear" ? 7e-2 : 5e-2;  // a product more
      for (std::size_t i = 0; i < a.size(); ++i) {
        CHECK(b[i].grad().scalar_type() == torch::kFloat);
        CHECK(close(b[i].grad(), a[i].grad(), tolerance));  // bf16: eight bits, several roundings
      }
    });
  }
}

TEST_CASE("autocast computes in its dtype and gives fp32 gradients", "[calls]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (subject.recurrent) return;  // LibTorch has no rule for it on a CPU
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
          "[calls]") {
  for_each_case([](const Recipe& recipe, const Subject& subject) {
    if (subject.recurrent) return;  // refused: the weight has no input of the adapter's own
    if (!subject.linear) return;    // the mean of the outputs is not that of the weights then
    Recipe dropping = recipe;
    dropping.options.dropout(0.5);
    Case c(dropping, subject, torch::kFloat);
    randomise(c.lora);
    const torch::NoGradGuard no_grad;
    torch::manual_seed(3);
    const Tensor base = c.base();
    const Tensor first = c.adapted();
    bool differs = false;  // two draws of few inputs may be alike
    for (int i = 0; i < 8; ++i) differs = differs || !torch::equal(c.adapted(), first);
    CHECK(differs);
    Tensor sum = torch::zeros_like(base);
    constexpr int kDraws = 200;
    for (int i = 0; i < kDraws; ++i) sum += c.adapted() - base;
    c.lora->eval();
    const Tensor exact = c.adapted() - base;
    CHECK(torch::equal(c.adapted(), c.adapted()));
    CHECK(close(sum / kDraws, exact, 0.25));  // 1 / sqrt(200) of each draw's spread
  });
}
