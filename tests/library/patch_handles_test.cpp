// SPDX-License-Identifier: Apache-2.0
// What a handle does to its model and to other handles, and what it keeps.
#include <lightlora/files.h>

#include "zoo.h"

using namespace lightlora;
using namespace lightlora_tests;

TEST_CASE("patch: a bound half-precision weight is not trained through, an adapted one is",
          "[patch]") {
  torch::nn::Sequential model(torch::nn::Linear(12, 16));
  model->to(torch::kBFloat16);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"});
  const Tensor x = input().to(torch::kBFloat16);
  lora(model, x).sum().backward();
  for (const auto& item : lora->named_parameters()) {
    CHECK(item.value().grad().scalar_type() == torch::kFloat);
  }
  lora->bind_weights({"0"});
  CHECK_THROWS_WITH(lora(model, x), ContainsSubstring("'0': expected an fp32 weight"));
  CHECK_NOTHROW(model->forward(x));
}

TEST_CASE("patch: two handles of one model give the flags back when the last one goes", "[patch]") {
  Zoo model;
  const auto first = patch<ClassicLoRA>(*model, 2, {"first"});
  const auto second = patch<ClassicLoRA>(*model, 2, {"list.0"});
  first->remove();
  for (const auto& parameter : model->parameters()) CHECK_FALSE(parameter.requires_grad());
  second->remove();
  for (const auto& parameter : model->parameters()) CHECK(parameter.requires_grad());
}

TEST_CASE("patch: a forced route ends with the adapters", "[patch]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first"});
  randomise(lora);
  lora->set_route(Route::merged);
  lora->remove();
  lora->add("default", "classic", LoRAOptions(2), {"first"});
  model->to(torch::kBFloat16);
  model->eval();
  // A delta far below what bf16 resolves beside a weight of 1: merged it would be lost.
  const torch::NoGradGuard no_grad;
  lora->named_parameters()["first.up"].fill_(1);
  lora->named_parameters()["first.down"].zero_();
  lora->named_parameters()["first.down"][0][0] = 1e-4;
  model->in->weight.fill_(1);
  model->in->bias.zero_();
  Tensor x = torch::zeros({1, 12}, torch::kBFloat16);
  x[0][0] = 1;
  x[0][1] = -1;  // the ones cancel, so that only the delta is left
  CHECK(lora(*model->in, x).norm().item<double>() > 0);
}

TEST_CASE("patch: layers of one kind with one weight cannot both be adapted", "[patch]") {
  for (const bool alias : {false, true}) {
    torch::nn::Sequential model(torch::nn::Linear(8, 8), torch::nn::Linear(8, 8));
    Tensor first = model->ptr<torch::nn::LinearImpl>(0)->weight;
    Tensor& second = model->ptr<torch::nn::LinearImpl>(1)->weight;
    alias ? second.set_data(first) : void(second = first);
    CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, Targets::all()),
                      ContainsSubstring("'1': adapters cannot be combined with those of '0'"));
    const auto lora = patch<ClassicLoRA>(*model, 2, {"0"});
    CHECK_THROWS_WITH(lora->add("more", "classic", 2, {"1"}),
                      ContainsSubstring("both layers have the same weight"));
    CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, {"1"}),
                      ContainsSubstring("expected a layer without adapters"));
  }
}

TEST_CASE("patch: a product finds a convolution's weight too, so that both cannot be adapted",
          "[patch]") {
  torch::nn::Sequential model(torch::nn::Linear(8, 6),
                              torch::nn::Conv1d(torch::nn::Conv1dOptions(8, 6, 1)));
  Tensor kernels = model->ptr<torch::nn::Conv1dImpl>(1)->weight;
  kernels.set_data(model->ptr<torch::nn::LinearImpl>(0)->weight.detach().unsqueeze(2));
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, Targets::all()),
                    ContainsSubstring("'1': adapters cannot be combined with those of '0'"));
}

TEST_CASE("torch::save keeps scales, and bases that are made of the weight", "[patch]") {
  for (const char* variant : {"classic", "lora_xs"}) {
    INFO(variant);
    torch::manual_seed(3);
    Zoo model, other;
    const auto lora = patch(*model, variant, LoRAOptions(2), {"first", "shared"});
    randomise(lora);
    lora->adapters()[1]->set_scale(-0.75);
    std::stringstream stream;
    torch::save(lora, stream);
    // Of other weights the bases would be others.
    auto loaded = patch(*other, variant, LoRAOptions(2), {"first", "shared"});
    torch::load(loaded, stream);
    for (int i = 0; i < 2; ++i) {
      CHECK(loaded->adapters()[i]->scale() == lora->adapters()[i]->scale());
      CHECK(torch::equal(loaded->adapters()[i]->delta(), lora->adapters()[i]->delta()));
    }
  }
}
