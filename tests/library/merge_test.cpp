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
  {
    // The second layer's weight is written to, and then LibTorch refuses to count the change: when
    // the old values are put back too.
    const c10::InferenceMode inference;
    model->shared->weight = model->shared->weight.clone();
  }
  CHECK_THROWS_WITH(lora->merge(), ContainsSubstring("nplace update to inference tensor"));
  CHECK_FALSE(lora->merged());
  CHECK(torch::equal(model(x), before));
  // Nothing of the weights of then is kept.
  model->shared->weight = torch::eye(16);
  CHECK(torch::equal(lora->weight_of("shared"), torch::eye(16)));
  lora->merge();
  lora->unmerge();
  CHECK(torch::equal(model->shared->weight, torch::eye(16)));
}

TEST_CASE("merge: what would fail is noticed before anything changes", "[merge]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first", "shared"});
  randomise(lora);
  const Tensor first = model->in->weight.clone(), own = model->shared->weight;
  const auto refused = [&](const std::string& message) {
    for (const bool safe : {false, true}) {
      CHECK_THROWS_WITH(lora->merge(safe), ContainsSubstring(message));
      CHECK_THROWS_WITH(lora->merge_and_unload(safe), ContainsSubstring(message));
    }
    CHECK_FALSE(lora->merged());
    CHECK(lora->sets().size() == 1);
    CHECK(torch::equal(model->in->weight, first));
  };
  model->shared->weight = torch::empty({16, 16}, torch::kMeta);
  refused("'shared': expected the adapter 'default' on meta like its layer, got cpu");
  model->shared->weight = own.narrow(0, 0, 1).expand({16, 16});
  refused("'shared': expected a weight with memory for each of its values, got an expanded one");
  model->shared->weight = own;
  lora->merge();
  CHECK(lora->merged());
}

TEST_CASE("merge: weights that share memory are refused, those that only share a storage are not",
          "[merge]") {
  struct Two : torch::nn::Module {
    Two() {
      a = register_module("a", torch::nn::Linear(8, 20));
      b = register_module("b", torch::nn::Embedding(20, 8));
    }
    torch::nn::Linear a{nullptr};
    torch::nn::Embedding b{nullptr};
  };
  const Tensor store = torch::randn({40, 16}), before = store.clone();
  const auto part = [&](int64_t row, int64_t column) {
    return store.narrow(0, row, 20).narrow(1, column, 8);
  };
  struct Way {
    const char* name;
    Tensor a, b;
    bool shared;
  };
  for (const auto& way : {Way{"an alias, as set_data makes it", part(0, 0), part(0, 0), true},
                          Way{"rows that overlap", part(0, 0), part(19, 0), true},
                          Way{"a column in common", part(0, 0), part(0, 7), true},
                          Way{"other rows", part(0, 0), part(20, 0), false},
                          Way{"other columns of the same rows", part(0, 0), part(0, 8), false}}) {
    INFO(way.name);
    Two model;
    model.a->weight.set_data(way.a);
    model.b->weight.set_data(way.b);
    const auto lora = patch<ClassicLoRA>(model, 2, Targets::all());
    randomise(lora);
    if (way.shared) {
      const auto message = ContainsSubstring(
          "'a': merging cannot be combined with the weight that it shares with 'b'");
      CHECK_THROWS_WITH(lora->merge(), message);
      CHECK_THROWS_WITH(lora->merge_and_unload(), message);
    } else {
      lora->merge();
      CHECK_FALSE(torch::equal(way.a, before.narrow(0, 0, 20).narrow(1, 0, 8)));
      lora->unmerge();
    }
    CHECK_FALSE(lora->merged());
    CHECK(torch::equal(store, before));
  }
}
