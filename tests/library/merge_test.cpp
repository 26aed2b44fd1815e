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
  const Tensor expected =
      (weight.to(torch::kFloat) + lora->adapters()[0]->delta()).to(torch::kBFloat16);
  lora->merge();
  CHECK(torch::equal(weight, expected));
}

TEST_CASE("merge: a weight that another layer has too is refused, and nothing changes", "[merge]") {
  struct Tied : torch::nn::Module {
    Tied() {
      embedding = register_module("embedding", torch::nn::Embedding(20, 8));
      head =
          register_module("head", torch::nn::Linear(torch::nn::LinearOptions(8, 20).bias(false)));
      head->weight = embedding->weight;
    }
    Tensor forward(const Tensor& ids) { return head(embedding(ids)); }
    torch::nn::Embedding embedding{nullptr};
    torch::nn::Linear head{nullptr};
  };
  Tied model;
  const Tensor ids = torch::arange(6), before = model.forward(ids);
  const Tensor weight = model.head->weight.clone();
  const auto lora = patch<ClassicLoRA>(model, 2, Targets::all());
  randomise(lora);
  const Tensor adapted = lora(model, ids);
  // Each layer has its own adapter while active.
  torch::NoGradGuard no_grad;
  const auto delta = [&](int i) { return lora->adapters()[i]->delta(); };
  const Tensor rows = torch::embedding(weight + delta(0).t(), ids);
  CHECK(close(adapted, rows.mm((weight + delta(1)).t()), 1e-5));
  CHECK_THROWS_WITH(lora->merge(),
                    ContainsSubstring("'embedding': merging cannot be combined with the "
                                      "weight that it shares with 'head'"));
  CHECK_FALSE(lora->merged());
  CHECK(torch::equal(model.head->weight, weight));
  CHECK(torch::equal(model.forward(ids), before));
}

TEST_CASE("merge: what fails half-way is undone", "[merge]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first", "shared"});
  randomise(lora);
  const Tensor x = input(), before = model(x);
  // The second layer's weight refuses to be written to.
  model->shared->weight.set_data(model->shared->weight.narrow(0, 0, 1).expand({16, 16}));
  const Tensor changed = model(x);
  CHECK_THROWS(lora->merge());
  CHECK_FALSE(lora->merged());
  CHECK(torch::equal(model(x), changed));
  model->shared->weight.set_data(torch::eye(16));
  lora->merge();
  lora->unmerge();
  CHECK(torch::equal(model->shared->weight, torch::eye(16)));
}
