// SPDX-License-Identifier: Apache-2.0
// One layer with one adapter, as the generic tests run every variant on every layer.
#pragma once

#include <cstdlib>

#include "models.h"

namespace lightlora_tests {

// Two routes of one result in double differ by rounding alone.
constexpr double kDouble = 1e-12;

// The properties hold wherever the layers are; CTest runs them on the CPU and on the simulated GPU.
inline torch::Device test_device() {
  const char* name = std::getenv("LIGHTLORA_TEST_DEVICE");
  return name ? torch::Device(name) : torch::Device(torch::kCPU);
}

inline torch::nn::Sequential model_of(const Subject& subject, torch::ScalarType dtype) {
  auto model = subject.model(dtype);
  model->to(test_device());
  return model;
}

struct Case {
  torch::nn::Sequential model;
  lightlora::Patched lora;
  Tensor x;
  std::string path;

  Case(const Recipe& recipe, const Subject& subject, torch::ScalarType dtype = torch::kDouble)
      : model(model_of(subject, dtype)),
        lora(lightlora::patch(*model, recipe.variant, recipe.options, {subject.path})),
        x(subject.x(dtype).to(test_device())),
        path(subject.path) {}

  Tensor base() { return model->forward(x); }
  Tensor adapted() { return lora(model, x); }
  std::shared_ptr<lightlora::Adapter> adapter() const { return lora->adapters()[0]; }
  // The layer's weight as a matrix, which the delta of some variants depends on.
  Tensor weight() const { return lora->weight_of(path); }
  Tensor delta() const { return adapter()->delta(weight()); }
};

}  // namespace lightlora_tests
