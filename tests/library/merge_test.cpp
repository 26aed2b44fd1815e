// SPDX-License-Identifier: Apache-2.0
#include "zoo.h"

using namespace lightlora;
using namespace lightlora_tests;

TEST_CASE("merge_and_unload: a plain model with the adapters' sum remains", "[merge]") {
  Zoo model;
  const Tensor x = input(), base = model(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first", "0"});
  randomise(lora);
  const Tensor adapted = lora(model, x);
  lora->merge_and_unload();
  CHECK(relative_error(adapted, base) > 1e-3);
  CHECK(close(model(x), adapted, 1e-5));  // one sum in fp32 instead of two products
  CHECK(lora->sets().empty());
  CHECK_FALSE(lora->merged());
  for (const auto& parameter : model->parameters()) CHECK(parameter.requires_grad());
  CHECK(patch<ClassicLoRA>(*model, 2, {"first"})->report().layers == 1);
}

TEST_CASE("merge: twice, or while active, is an error", "[merge]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first"});
  CHECK_THROWS_WITH(lora->unmerge(), ContainsSubstring("expected merged adapters"));
  {
    const auto on = lora->activate();
    CHECK_THROWS_WITH(lora->merge(), ContainsSubstring("expected no activation to be alive"));
    CHECK_THROWS_WITH(lora->remove(), ContainsSubstring("expected no activation to be alive"));
  }
  lora->merge();
  CHECK(lora->merged());
  CHECK_THROWS_WITH(lora->merge(), ContainsSubstring("expected unmerged adapters"));
}

TEST_CASE("merge: the safe form refuses what is not finite and changes nothing", "[merge]") {
  Zoo model;
  const Tensor x = input(), before = model(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first", "shared"});
  randomise(lora);
  torch::NoGradGuard no_grad;
  lora->named_parameters()["shared.up"][3][1] = std::nan("");
  CHECK_THROWS_WITH(lora->merge(/*safe=*/true), ContainsSubstring("'shared': expected finite"));
  CHECK_FALSE(lora->merged());
  CHECK(torch::equal(model(x), before));
}

TEST_CASE("merge: half-precision weights get the fp32 sum, rounded once", "[merge]") {
  torch::nn::Sequential model(torch::nn::Linear(12, 16));
  model->to(torch::kBFloat16);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"});
  randomise(lora);
  const auto weight = model->parameters()[0];
  torch::NoGradGuard no_grad;
  const Tensor expected = (weight.to(torch::kFloat) + lora->adapters()[0]->delta())
                              .to(torch::kBFloat16);
  lora->merge();
  CHECK(torch::equal(weight, expected));
}
