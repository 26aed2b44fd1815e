// SPDX-License-Identifier: Apache-2.0
#include <torch/optim/adamw.h>

#include <fstream>

#include "images/image.h"
#include "images/png.h"
#include "images/tensor.h"
#include "support.h"
#include "training/dataset.h"
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

// A folder with pictures of the given sizes, each of one grey.
void write_pictures(const ScratchFolder& folder, const std::vector<std::pair<int, int>>& sizes) {
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto grey = static_cast<uint8_t>(40 * i);
    const images::Image picture(sizes[i].first, sizes[i].second, {grey, grey, grey});
    images::save_png(folder.file(std::to_string(i) + ".png"), picture);
  }
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
  CHECK_THROWS_WITH(ParameterBank({}), ContainsSubstring("expected something to train"));
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

TEST_CASE("AdamW over the bank equals torch's over the tensors", "[optimizer]") {
  auto ours = leaves();
  auto theirs = leaves();
  ParameterBank bank(ours);
  AdamW optimizer(bank.values(), {0.8, 0.95, 0.1, 1e-6});
  torch::optim::AdamW reference(
      theirs,
      torch::optim::AdamWOptions(0.03).betas({0.8, 0.95}).weight_decay(0.1).eps(1e-6));
  for (int step = 0; step < 5; ++step) {
    bank.zero_gradients();
    loss_of(ours).backward();
    optimizer.step(bank.values(), bank.gradients(), 0.03);
    reference.zero_grad();
    loss_of(theirs).backward();
    reference.step();
  }
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(close(ours[i], theirs[i], 1e-6));
}

TEST_CASE("AdamW goes on from its saved state", "[optimizer]") {
  const auto run = [](int stop) {
    auto parameters = leaves();
    ParameterBank bank(parameters);
    AdamW optimizer(bank.values(), {});
    for (int step = 0; step < 6; ++step) {
      if (step == stop) {
        const auto state = optimizer.state("x.");
        optimizer = AdamW(bank.values(), {});
        optimizer.load_state(state, "x.");
      }
      bank.zero_gradients();
      loss_of(parameters).backward();
      optimizer.step(bank.values(), bank.gradients(), 0.03);
    }
    return bank.values().clone();
  };
  CHECK(torch::equal(run(-1), run(3)));
}

TEST_CASE("learning rates are diffusers' at every step", "[optimizer]") {
  // get_scheduler(name, num_warmup_steps=2, num_training_steps=10, num_cycles=2, power=2) of
  // diffusers 0.42.1 over a base rate of 1, at steps 0, 1, 2, 5, 8, 10.
  const std::vector<std::pair<std::string, std::vector<double>>> expected{
      {"constant", {1, 1, 1, 1, 1, 1}},
      {"constant_with_warmup", {0, 0.5, 1, 1, 1, 1}},
      {"linear", {0, 0.5, 1, 0.625, 0.25, 0}},
      {"cosine_with_restarts", {0, 0.5, 1, 0.14644660940672627, 0.5, 0}},
      {"polynomial", {0, 0.5, 1, 0.3906250609375, 0.06250009375, 1e-7}},
  };
  const std::vector<int64_t> steps{0, 1, 2, 5, 8, 10};
  for (const auto& [name, rates] : expected) {
    const LearningRate schedule(name, 1.0, 2, 10, /*cycles=*/2, /*power=*/2);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      INFO(name << " at " << steps[i]);
      CHECK(std::abs(schedule.at(steps[i]) - rates[i]) < 1e-9);
    }
  }
  const LearningRate cosine("cosine", 2.0, 0, 8);
  CHECK(cosine.at(0) == 2.0);
  CHECK(std::abs(cosine.at(4) - 1.0) < 1e-12);
  CHECK_THROWS_WITH(LearningRate("linea", 1, 0, 1), ContainsSubstring("got 'linea'"));
}

TEST_CASE("the loss scaler skips an overflow, halves, and unscales", "[optimizer]") {
  LossScaler scaler(true, torch::kCPU);
  CHECK(scaler.scale() == 65536);
  Tensor gradients = torch::full({4}, 65536.0F);
  CHECK(scaler.unscale(gradients));
  CHECK(gradients.eq(1).all().item<bool>());
  gradients[2] = INFINITY;
  CHECK_FALSE(scaler.unscale(gradients));
  CHECK(scaler.scale() == 32768);
  CHECK(scaler.scaled(torch::ones({})).item<double>() == 32768);
  LossScaler off(false, torch::kCPU);
  CHECK(off.scaled(torch::ones({})).item<double>() == 1);
  CHECK_FALSE(off.unscale(gradients));
  CHECK(off.unscale(torch::ones({2})));
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

TEST_CASE("data set: pictures of any size become squares of the resolution", "[dataset]") {
  const ScratchFolder folder;
  write_pictures(folder, {{40, 60}, {60, 40}, {20, 20}});
  std::ofstream(folder.file("caption.txt")) << "a toy";
  const ImageDataset dataset(folder.path().string(), {32, false, images::Filter::kLanczos});
  REQUIRE(dataset.size() == 3);
  CHECK(dataset.skipped() == std::vector<std::string>{"caption.txt"});
  CHECK_FALSE(dataset.is_fixed(0));
  CHECK(dataset.is_fixed(2));
  auto generator = generator_for(0, Stream::sample, 0);
  for (int64_t i = 0; i < 3; ++i) {
    const Tensor sample = dataset.sample(i, generator);
    CHECK(sample.sizes() == torch::IntArrayRef({3, 32, 32}));
    CHECK(std::abs(sample.mean().item<double>() - (40.0 * static_cast<double>(i) / 127.5 - 1)) <
          1e-5);
  }
  CHECK(ImageDataset(folder.path().string(), {32, true, images::Filter::kLanczos}).is_fixed(0));
}

TEST_CASE("data set: random crops move, centre crops do not", "[dataset]") {
  const ScratchFolder folder;
  images::Image ramp(96, 32);
  for (int64_t y = 0; y < 32; ++y) {
    for (int64_t x = 0; x < 96 * 3; ++x) ramp.row(y)[x] = static_cast<uint8_t>(x / 3);
  }
  images::save_png(folder.file("ramp.png"), ramp);
  auto generator = generator_for(0, Stream::sample, 0);
  const auto left_edges = [&](bool center_crop) {
    const ImageDataset dataset(folder.path().string(), {32, center_crop, images::Filter::kLanczos});
    std::set<float> edges;
    for (int i = 0; i < 20; ++i) {
      edges.insert(dataset.sample(0, generator)[0][0][0].item<float>());
    }
    return edges;
  };
  CHECK(left_edges(true).size() == 1);
  CHECK(left_edges(false).size() > 5);
}

TEST_CASE("data set: a folder without pictures is an error", "[dataset]") {
  const ScratchFolder folder;
  CHECK_THROWS_WITH(ImageDataset(folder.path().string(), {}),
                    ContainsSubstring("expected a folder with pictures, got one without"));
  CHECK_THROWS_WITH(ImageDataset(folder.file("none"), {}), ContainsSubstring("none'"));
}
