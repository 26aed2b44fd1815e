// SPDX-License-Identifier: Apache-2.0
#include <lightlora/file_io.h>

#include <set>

#include "paths.h"
#include "support.h"
#include "training/learning_rate.h"
#include "training/loss_scaler.h"
#include "training/optimizer.h"
#include "training/random.h"

using torch::Tensor;
using namespace training;

namespace {

std::vector<Tensor> leaves() {
  torch::manual_seed(0);
  return {torch::randn({3, 4}).requires_grad_(), torch::randn({5}).requires_grad_()};
}

Tensor loss_of(const std::vector<Tensor>& parameters) {
  return parameters[0].square().sum() + parameters[1].pow(3).sum();
}

}  // namespace

TEST_CASE("a bank keeps the values and gathers the gradients of its parameters", "[optimizer]") {
  auto parameters = leaves();
  const Tensor before = parameters[0].detach().clone();
  ParameterBank bank(parameters);
  CHECK(torch::equal(parameters[0], before));
  CHECK(bank.values().numel() == 17);
  loss_of(parameters).backward();
  loss_of(parameters).backward();
  CHECK(close(bank.gradients().slice(0, 0, 12).view({3, 4}), 4 * before, 1e-6));
  bank.values().fill_(2);
  CHECK(parameters[1].eq(2).all().item<bool>());
  bank.zero_gradients();
  CHECK(parameters[0].grad().count_nonzero().item<int64_t>() == 0);
  CHECK_THROWS_WITH(ParameterBank(std::vector<Tensor>{}),
                    ContainsSubstring("expected something to train"));
}

TEST_CASE("clipping scales to the norm, and only down", "[optimizer]") {
  auto parameters = leaves();
  ParameterBank bank(parameters);
  bank.gradients().fill_(1);
  CHECK(std::abs(bank.clip(100).item<double>() - std::sqrt(17.0)) < 1e-5);
  CHECK(bank.gradients().eq(1).all().item<bool>());
  bank.clip(0.5);
  CHECK(std::abs(bank.gradients().norm().item<double>() - 0.5) < 1e-5);
  bank.gradients().fill_(1);
  bank.clip(0);
  CHECK(bank.gradients().eq(1).all().item<bool>());
}

namespace {

const lightlora::SafetensorsFile& references() {
  static const lightlora::SafetensorsFile file(LIGHTLORA_TEST_DATA "/optimizers.safetensors");
  return file;
}

// The groups of make_optimizers.py's parameters, all in one.
std::vector<Tensor> reference_start(torch::Dtype dtype = torch::kFloat) {
  const Tensor start = references().load("start").to(dtype);
  return {start.slice(0, 0, 24).view({6, 4}).clone().requires_grad_(),
          start.slice(0, 24, 29).clone().requires_grad_(),
          start.slice(0, 29, 35).view({2, 3}).clone().requires_grad_()};
}

OptimizerOptions reference_options(const std::string& name) {
  OptimizerOptions options;
  for (const auto& [word, kind] : optimizer_choices()) {
    if (word == name.substr(0, name.find('_'))) options.kind = kind;
  }
  options.beta1 = 0.8;
  options.beta2 = 0.95;
  options.decay = 0.1;
  options.epsilon = 1e-6;
  options.momentum = 0.7;
  if (name == "prodigy") options.d_coef = 2.0;
  if (name == "prodigy_plain") {
    options.beta3 = 0.9;
    options.bias_correction = options.safeguard_warmup = false;
  }
  return options;
}

}  // namespace

TEST_CASE("every optimiser takes the steps of its reference implementation", "[optimizer]") {
  const Tensor gradients = references().load("gradients"), rates = references().load("rates");
  std::set<OptimizerKind> tested;
  for (const std::string name : {"adamw", "adafactor", "lion", "prodigy", "prodigy_plain", "sgd"}) {
    const Tensor expected = references().load(name);
    const auto parameters = reference_start(expected.scalar_type());
    ParameterBank bank(parameters);
    const auto options = reference_options(name);
    const auto optimizer = make_optimizer(options, bank.slices()[0]);
    tested.insert(options.kind);
    for (int64_t i = 0; i < gradients.size(0); ++i) {
      INFO(name << " at step " << i);
      bank.gradients().copy_(gradients[i]);
      const double factor = options.kind == OptimizerKind::prodigy ? 50 : 1;
      optimizer->step(bank.values(), bank.gradients(), factor * rates[i].item<double>());
      // The same operations in another order; Prodigy's are in fp64.
      CHECK(close(bank.values(), expected[i], 1e-6));
    }
    const Tensor start = references().load("start"), moved = bank.values() - start;
    CHECK(moved.norm().item<double>() > 1e-3 * start.norm().item<double>());
    CHECK(close(moved, expected[gradients.size(0) - 1] - start, 1e-5));
  }
  CHECK(tested.size() == optimizer_choices().size());
}

TEST_CASE("every optimiser goes on from its saved state, bit for bit", "[optimizer]") {
  const Tensor gradients = references().load("gradients");
  for (const auto& name : cli::words_of(optimizer_choices())) {
    const auto run = [&](int64_t stop) {
      const auto parameters = reference_start();
      ParameterBank bank(parameters);
      auto optimizer = make_optimizer(reference_options(name), bank.slices()[0]);
      for (int64_t i = 0; i < 8; ++i) {
        if (i == stop) {
          const auto state = optimizer->state("x.");
          optimizer = make_optimizer(reference_options(name), bank.slices()[0]);
          optimizer->load_state(state, "x.");
        }
        bank.gradients().copy_(gradients[i]);
        optimizer->step(bank.values(), bank.gradients(), 0.03);
      }
      return bank.values().clone();
    };
    INFO(name);
    CHECK(torch::equal(run(-1), run(3)));
  }
}

TEST_CASE("an optimiser's state does not fit another optimiser or other parameters",
          "[optimizer]") {
  const auto parameters = reference_start();
  ParameterBank bank(parameters);
  const auto& slice = bank.slices()[0];
  auto state = make_optimizer(reference_options("sgd"), slice)->state("x.");
  const auto adamw = make_optimizer(reference_options("adamw"), slice);
  CHECK_THROWS_WITH(adamw->load_state(state, "x."), ContainsSubstring("another --optimizer"));
  state["x.velocity"] = torch::zeros({3});
  const auto sgd = make_optimizer(reference_options("sgd"), slice);
  CHECK_THROWS_WITH(sgd->load_state(state, "x."),
                    ContainsSubstring("expected shape [35], got [3]"));
}

TEST_CASE("a bank's groups keep their parameters apart, each with its rate", "[optimizer]") {
  const auto parameters = reference_start();
  ParameterBank bank(std::vector<ParameterGroup>{{"slow", 0.5, {parameters[0]}},
                                                 {"none", 3, {}},
                                                 {"fast", 2, {parameters[1], parameters[2]}}});
  REQUIRE(bank.slices().size() == 2);
  CHECK(bank.slices()[1].rate_factor == 2);
  CHECK(bank.slices()[1].values.numel() == 11);
  CHECK(bank.slices()[1].shapes == std::vector<std::vector<int64_t>>{{5}, {2, 3}});
  bank.slices()[1].values.fill_(7);
  CHECK(parameters[2].eq(7).all().item<bool>());
  CHECK_FALSE(parameters[0].eq(7).any().item<bool>());
}

TEST_CASE("learning rates are diffusers' and transformers' at every step", "[optimizer]") {
  for (const auto& [name, kind] : schedule_choices()) {
    const Tensor expected = references().load("schedule." + name);
    const LearningRate schedule(kind, 0.5, 4, 25, /*cycles=*/3, /*power=*/2, /*decay_steps=*/9);
    for (int64_t step = 0; step < expected.numel(); ++step) {
      INFO(name << " at " << step);
      CHECK(std::abs(schedule.at(step) - expected[step].item<double>()) < 1e-12);
    }
  }
}

TEST_CASE("the loss scaler skips an overflow, halves, and unscales", "[optimizer]") {
  LossScaler scaler(true, torch::kCPU);
  CHECK(scaler.scale() == 65536);
  Tensor gradients = torch::full({4}, 65536.0F);
  CHECK(scaler.unscale(gradients).item<bool>());
  CHECK(gradients.eq(1).all().item<bool>());
  gradients[2] = INFINITY;
  CHECK_FALSE(scaler.unscale(gradients).item<bool>());
  CHECK(scaler.scale() == 32768);
  CHECK(scaler.scaled(torch::ones({})).item<double>() == 32768);
  LossScaler resumed(true, torch::kCPU);
  resumed.load_state(scaler.state("s."), "s.");
  CHECK(resumed.scale() == 32768);
  LossScaler off(false, torch::kCPU);
  CHECK(off.scaled(torch::ones({})).item<double>() == 1);
  CHECK_FALSE(off.unscale(gradients).item<bool>());
  CHECK(off.unscale(torch::ones({2})).item<bool>());
}

TEST_CASE("random streams depend on seed, purpose and index alone", "[random]") {
  const auto draw = [](uint64_t seed, Stream stream, int64_t index) {
    auto generator = generator_for(seed, stream, index);
    return torch::randn({4}, generator);
  };
  const Tensor first = draw(1, Stream::sample, 5);
  draw(1, Stream::sample, 6);
  CHECK(torch::equal(draw(1, Stream::sample, 5), first));
  CHECK_FALSE(torch::equal(draw(2, Stream::sample, 5), first));
  CHECK_FALSE(torch::equal(draw(1, Stream::sample, 6), first));
  CHECK_FALSE(torch::equal(draw(1, Stream::order, 5), first));
}
