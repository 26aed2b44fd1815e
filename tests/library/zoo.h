// SPDX-License-Identifier: Apache-2.0
// Small models for the tests of patching and merging, their input, and adapters that do something.
#pragma once

#include <lightlora/patch.h>

#include <string>

#include "support.h"

namespace lightlora_tests {

using torch::Tensor;

// Typed members, a Sequential, a ModuleList, and one layer registered twice.
struct ZooImpl : torch::nn::Module {
  ZooImpl() {
    in = register_module("first", torch::nn::Linear(12, 16));
    shared = register_module("shared", torch::nn::Linear(16, 16));
    body = register_module(
        "body", torch::nn::Sequential(torch::nn::Linear(16, 20), torch::nn::ReLU(), shared_in()));
    list = register_module("list", torch::nn::ModuleList(torch::nn::Linear(20, 24)));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({24})));
    again = register_module("again", shared.ptr());
  }
  torch::nn::Linear shared_in() { return torch::nn::Linear(20, 20); }
  Tensor forward(Tensor x) {
    x = shared(in(x).relu());
    x = body->forward(std::dynamic_pointer_cast<torch::nn::LinearImpl>(again)->forward(x));
    return norm(list[0]->as<torch::nn::Linear>()->forward(x));
  }
  torch::nn::Linear in{nullptr}, shared{nullptr};
  torch::nn::Sequential body{nullptr};
  torch::nn::ModuleList list{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  std::shared_ptr<torch::nn::Module> again;
};
TORCH_MODULE(Zoo);

inline Tensor input() {
  torch::manual_seed(2);
  return torch::randn({5, 12});
}

inline torch::nn::Sequential one_linear() {
  return torch::nn::Sequential(torch::nn::Linear(12, 9));
}

inline void randomise(const lightlora::Patched& lora, const std::string& name = "default") {
  torch::NoGradGuard no_grad;
  for (auto& item : lora->named_parameters(name)) item.value().normal_();
}

}  // namespace lightlora_tests
