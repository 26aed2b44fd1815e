// SPDX-License-Identifier: Apache-2.0
// Adapted layers in single and half precision against fp64 on the CPU, wherever the tests compute:
// a GPU's products round in other places than the CPU's.
#include <cstdio>

#include "cases.h"

using namespace lightlora_tests;

namespace {

struct Precision {
  const char* name;
  torch::ScalarType dtype;
  double limit;  // a few roundings of the dtype's, in a result and in a gradient
};

const Precision kPrecisions[] = {
    {"fp32", torch::kFloat, 1e-5}, {"bf16", torch::kBFloat16, 2e-2}, {"fp16", torch::kHalf, 5e-3}};

// A layer whose weight and inputs are exact in `dtype`, with an adapter that changes them.
struct Layer {
  torch::nn::Sequential model;
  lightlora::Patched lora;
  Tensor x;

  Layer(const Recipe& recipe, const Subject& subject, torch::ScalarType dtype)
      : model(subject.model(dtype)),
        lora(lightlora::patch(*model, recipe.variant, recipe.options, {"0"})),
        x(subject.x(dtype)) {
    randomise(lora);
  }

  void move_to(torch::Device device, torch::ScalarType dtype) {
    model->to(device, dtype);
    lora->to(device);
    if (dtype == torch::kDouble) lora->adapters()[0]->module().to(dtype);
    x = x.to(device, x.is_floating_point() ? dtype : x.scalar_type());
  }

  // The result and the gradients of everything that trains.
  std::vector<Tensor> results() {
    std::vector<Tensor> all{lora(model, x)};
    all[0].backward(torch::ones_like(all[0]));
    for (const auto& parameter : lora->parameters()) all.push_back(parameter.grad());
    return all;
  }
};

struct Worst {
  double error = 0;
  std::string where = "none";

  void add(double found, const std::string& name) {
    if (found > error || found != found) *this = {found, name};
  }
};

const Subject& subject(const std::string& name) {
  for (const auto& one : subjects()) {
    if (one.name == name) return one;
  }
  throw std::logic_error("no layer " + name);
}

}  // namespace

TEST_CASE("adapted layers have fp64's results and gradients in every precision",
          "[precision][cuda]") {
  for (const auto& precision : kPrecisions) {
    Worst forward, backward;
    for (const auto& recipe : recipes()) {
      for (const auto* layer : {"Linear", "Conv2d"}) {
        INFO(recipe.name << " on " << layer << " in " << precision.name);
        Layer exact(recipe, subject(layer), precision.dtype);
        Layer own(recipe, subject(layer), precision.dtype);
        exact.move_to(torch::kCPU, torch::kDouble);
        own.move_to(test_device(), precision.dtype);
        const auto expected = exact.results(), got = own.results();
        REQUIRE(got.size() == expected.size());
        for (size_t i = 0; i < got.size(); ++i) {
          CHECK(close(got[i], expected[i], precision.limit));
          (i ? backward : forward).add(relative_error(got[i], expected[i]), recipe.name);
        }
      }
    }
    // A line of scripts/gpu_check.sh's table.
    for (const auto& [name, worst] : {std::pair("forward", forward), {"backward", backward}}) {
      std::printf("RESULT | layers, %s, %s | %.1e from fp64 at most (%s), limit %.0e\n",
                  precision.name, name, worst.error, worst.where.c_str(), precision.limit);
    }
  }
}
