// SPDX-License-Identifier: Apache-2.0
#include <lightlora/files.h>
#include <lightlora/regex.h>

#include "zoo.h"

using namespace lightlora;
using namespace lightlora_tests;

TEST_CASE("patch: typed members, Sequential and ModuleList are all adapted", "[patch]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all());
  std::vector<std::string> paths;
  for (const auto& adapter : lora->adapters()) paths.push_back(adapter->layer().name);
  CHECK(paths == std::vector<std::string>{"first", "shared", "body.0", "body.2", "list.0"});
  const Tensor x = input(), base = model(x);
  for (const auto& adapter : lora->adapters()) {
    INFO(adapter->layer().name);
    auto& classic = dynamic_cast<ClassicAdapterImpl&>(*adapter);
    torch::NoGradGuard no_grad;
    classic.up.normal_();
    CHECK(relative_error(lora(model, x), base) > 1e-3);
    classic.up.zero_();
    CHECK(torch::equal(lora(model, x), base));
  }
}

TEST_CASE("patch: a layer that is registered twice is adapted and counted once", "[patch]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"shared"});
  CHECK(lora->report().layers == 1);
  CHECK(lora->report().trainable == 2 * (16 + 16));
  CHECK(lora->report().total ==
        12 * 16 + 16 + 16 * 16 + 16 + 16 * 20 + 20 + 20 * 20 + 20 + 20 * 24 + 24 + 24 + 24);
}

TEST_CASE("patch: the model without an activation computes as before", "[patch]") {
  Zoo model;
  const Tensor x = input(), before = model(x);
  const auto lora = patch<LightLoRA>(*model, 2, {"first", "0"});
  randomise(lora);
  CHECK(torch::equal(model(x), before));
  Tensor inside;
  {
    const auto on = lora->activate();
    inside = model(x);
    const auto nested = lora->activate();
    CHECK(torch::equal(model(x), inside));
  }
  CHECK_FALSE(torch::equal(inside, before));
  CHECK(torch::equal(model(x), before));
  CHECK(torch::equal(lora(model, x), inside));
}

TEST_CASE("patch: a call takes the model, a part of it or what holds it, and no other", "[patch]") {
  torch::nn::Sequential model(torch::nn::Linear(12, 12), torch::nn::Linear(12, 9));
  struct Whole : torch::nn::Module {
    explicit Whole(torch::nn::Sequential part) : body(register_module("body", std::move(part))) {}
    Tensor forward(const Tensor& x) { return body->forward(x).relu(); }
    torch::nn::Sequential body;
  } whole(model);
  torch::nn::Sequential other(torch::nn::Linear(12, 9));
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all());
  randomise(lora);
  const Tensor x = input(), adapted = lora(model, x);
  CHECK(close(lora(whole, x), adapted.relu(), 1e-6));
  auto first = model->ptr<torch::nn::LinearImpl>(0);
  CHECK_FALSE(torch::equal(lora(*first, x), first->forward(x)));
  CHECK_THROWS_WITH(lora(other, x),
                    ContainsSubstring("got 'torch::nn::SequentialImpl', which has none of its 2 "
                                      "adaptable layers"));
  CHECK_FALSE(lora->is_active());
}

TEST_CASE("patch: an empty handle says so", "[patch]") {
  const Patched lora;
  torch::nn::Sequential model = one_linear();
  CHECK_FALSE(lora);
  CHECK_THROWS_WITH(lora->report(),
                    ContainsSubstring("expected a handle that patch(...) returned"));
  CHECK_THROWS_WITH(lora(model, input()), ContainsSubstring("got an empty one"));
}

TEST_CASE("patch: an exception inside an activation restores the model", "[patch]") {
  Zoo model;
  const Tensor x = input(), before = model(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all());
  randomise(lora);
  CHECK_THROWS(lora(model, torch::randn({5, 13})));
  CHECK(torch::equal(model(x), before));
}

TEST_CASE("patch: freezes the whole base, and remove gives the flags back", "[patch]") {
  Zoo model;
  model->norm->weight.set_requires_grad(false);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first"});
  for (const auto& parameter : model->parameters()) CHECK_FALSE(parameter.requires_grad());
  lora->remove();
  CHECK(model->in->weight.requires_grad());
  CHECK(model->list[0]->as<torch::nn::Linear>()->weight.requires_grad());
  CHECK_FALSE(model->norm->weight.requires_grad());
  CHECK(lora->parameters().empty());
}

TEST_CASE("patch: saving and cloning the model see the base, even while active", "[patch]") {
  Zoo model;
  const Tensor x = input(), before = model(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first"});
  randomise(lora);
  const auto on = lora->activate();
  std::stringstream stream;
  torch::save(model, stream);
  Zoo loaded;
  torch::load(loaded, stream);
  CHECK(torch::equal(loaded(x), before));
}

TEST_CASE("patch: a target that matches nothing leaves the model as it was", "[patch]") {
  Zoo model;
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, {"to_q"}),
                    ContainsSubstring("target 'to_q': expected at least one layer"));
  CHECK_THROWS_WITH(
      patch<ClassicLoRA>(*model, 2, {"list"}),
      ContainsSubstring("'list': expected a layer, got a module that holds some; hint: "
                        "name those, as in 'list.0'"));
  CHECK_THROWS_WITH(
      patch<ClassicLoRA>(*model, 2, {"norm"}),
      ContainsSubstring("got 'norm', a torch::nn::LayerNormImpl: none of Linear, Conv1d"));
  for (const auto& parameter : model->parameters()) CHECK(parameter.requires_grad());
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first"});
  CHECK(lora->report().layers == 1);
}

TEST_CASE("patch: a model without adaptable layers is an error", "[patch]") {
  torch::nn::Sequential model(torch::nn::ReLU{});
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, Targets::all()),
                    ContainsSubstring("expected a model with layers that can be adapted (Linear"));
}

TEST_CASE("patch: bad options name the layer", "[patch]") {
  Zoo model;
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 0, {"first"}),
                    ContainsSubstring("'first': expected rank > 0, got 0"));
  CHECK_THROWS_WITH(patch<LightLoRA>(*model, 13, {"first"}),
                    ContainsSubstring("'first': expected rank <= 12"));
  // Nothing of the failed attempts is left behind.
  CHECK(patch<ClassicLoRA>(*model, 2, {"first"})->report().layers == 1);
}

TEST_CASE("patch: a layer takes adapters from one handle at a time", "[patch]") {
  Zoo model;
  const auto first = patch<ClassicLoRA>(*model, 2, {"first"});
  CHECK_THROWS_WITH(patch<LightLoRA>(*model, 2, {"first"}),
                    ContainsSubstring("'first': expected a layer without adapters") &&
                        ContainsSubstring("hint: add a second set with lora->add"));
  CHECK(patch<LightLoRA>(*model, 2, {"shared"})->report().layers == 1);
  first->remove();
  CHECK(patch<LightLoRA>(*model, 2, {"first"})->report().layers == 1);
}

TEST_CASE("patch: several named sets add up with their weights", "[patch]") {
  torch::manual_seed(0);
  auto model = one_linear();
  model->to(torch::kDouble);
  const Tensor x = input().to(torch::kDouble), base = model->forward(x);
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(2).network_alpha(1), {"0"}, "one");
  lora->add("two", "light", LoRAOptions(3), {"0"});
  randomise(lora, "one");
  randomise(lora, "two");
  const auto only = [&](double one, double two) {
    lora->set_active({{"one", one}, {"two", two}});
    return lora(model, x) - base;
  };
  const Tensor one = only(1, 0), two = only(0, 1);
  CHECK(one.norm().item<double>() > 0.1);
  CHECK(two.norm().item<double>() > 0.1);
  CHECK(close(only(0.5, -2), 0.5 * one - 2 * two, 1e-12));
  lora->merge();
  CHECK(close(model->forward(x) - base, 0.5 * one - 2 * two, 1e-12));
  lora->unmerge();
  lora->set_active({{"two", 1}});
  CHECK(close(lora(model, x) - base, two, 1e-12));
  lora->set_active({});
  CHECK(torch::equal(lora(model, x), base));
  CHECK(lora->parameters().size() == 4);
  CHECK_THROWS_WITH(lora->set_active({{"three", 1}}), ContainsSubstring("('one', 'two'), got"));
  CHECK_THROWS_WITH(lora->add("one", "light", 2, {"0"}),
                    ContainsSubstring("got 'one' a second time"));
}

TEST_CASE("patch: rank and alpha patterns reach their layers", "[patch]") {
  Zoo model;
  const auto lora =
      patch<ClassicLoRA>(*model, LoRAOptions(4).network_alpha(4),
                         Targets{"first", "shared"}.rank("shared", 2).alpha("first", 1));
  CHECK(lora->adapters()[0]->rank() == 4);
  CHECK(lora->adapters()[0]->scale() == 0.25);
  CHECK(lora->adapters()[1]->rank() == 2);
  CHECK(lora->adapters()[1]->scale() == 2);
}

TEST_CASE("patch: patterns and excludes may be regular expressions over the whole path",
          "[patch]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(4),
                                       Targets::all()
                                           .exclude(matches("li.t\\.\\d"))
                                           .rank(matches("body\\.[01]|first"), 2)
                                           .rank(matches("(.*\\.)?[0-9]+"), 3)
                                           .alpha(matches("b.*2"), 9.0));
  std::map<std::string, std::pair<int64_t, double>> found;
  for (const auto& adapter : lora->adapters()) {
    found[adapter->layer().name] = {adapter->rank(), adapter->scale()};
  }
  CHECK(found ==
        std::map<std::string, std::pair<int64_t, double>>{
            {"first", {2, 1}}, {"shared", {4, 1}}, {"body.0", {2, 1}}, {"body.2", {3, 3}}});
}

TEST_CASE("patch: a pattern that is malformed or matches no layer is an error", "[patch]") {
  Zoo model;
  CHECK_THROWS_WITH(Targets{"first"}.rank(matches("("), 2),
                    ContainsSubstring("'(': expected ')' in a regular expression"));
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, Targets{"first"}.alpha("irst", 2.0)),
                    ContainsSubstring("target 'irst': expected at least one layer") &&
                        ContainsSubstring("'first'"));
}

TEST_CASE("patch: a set that is added in mid-training trains, and a set that is removed is gone",
          "[patch]") {
  torch::manual_seed(0);
  auto model = one_linear();
  const Tensor x = input(), target = torch::randn({5, 9});
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"}, "one");
  torch::optim::SGD optimizer(lora->parameters(), 0.1);
  const auto loss = [&] { return torch::mse_loss(lora(model, x), target); };
  const auto train = [&] {
    optimizer.zero_grad();
    const Tensor value = loss();
    value.backward();
    optimizer.step();
    return value.item<double>();
  };
  const double first = train();
  for (int i = 0; i < 5; ++i) train();
  lora->add("two", "light", LoRAOptions(3), {"0"});
  optimizer.add_param_group(
      torch::optim::OptimizerParamGroup(lora->named_parameters("two").values()));
  const Tensor start = lora->named_parameters("two")["0.up"].detach().clone();
  const double joined = train();
  for (int i = 0; i < 5; ++i) train();
  CHECK(joined < first);
  CHECK(loss().item<double>() < joined);
  CHECK_FALSE(torch::equal(lora->named_parameters("two")["0.up"], start));

  const Tensor both = lora(model, x).detach();
  lora->set_active({{"two", 1}});
  const Tensor two = lora(model, x).detach();
  lora->set_active({{"one", 1}, {"two", 1}});
  CHECK(close(lora(model, x), both, 1e-6));
  const int64_t trainable = lora->report().trainable;
  lora->remove("one");
  CHECK(lora->sets() == std::vector<std::string>{"two"});
  CHECK(close(lora(model, x), two, 1e-6));
  CHECK(lora->report().trainable == trainable - 2 * (12 + 9));
  CHECK(lora->report().layers == 1);
  CHECK(lora->report().hits.size() == 1);
  CHECK(lora->parameters().size() == 2);
  CHECK_THROWS_WITH(lora->remove("one"), ContainsSubstring("('two'), got 'one'"));
  lora->remove("two");
  CHECK(lora->report().layers == 0);
  CHECK(lora->report().trainable == 0);
  // Nothing holds the layer any more, and its weight stays frozen as the handle found it.
  const auto next = patch<ClassicLoRA>(*model, 2, {"0"});
  CHECK(next->report().layers == 1);
}

TEST_CASE("assign: the wrong layers or shapes change nothing", "[patch]") {
  Zoo model;
  const auto lora = patch<ClassicLoRA>(*model, 2, {"first", "shared"});
  randomise(lora);
  const auto good = lora->state();
  auto wrong = good;
  wrong[1].trained["down"] = torch::zeros({3, 16});
  wrong[0].trained["down"].zero_();
  CHECK_THROWS_WITH(lora->assign(wrong),
                    ContainsSubstring("'shared': expected 'down' [2, 16], got [3, 16]"));
  CHECK(torch::equal(lora->named_parameters()["first.down"], lora->state()[0].trained["down"]));
  CHECK(lora->named_parameters()["first.down"].norm().item<double>() > 0);
  wrong = good;
  wrong.pop_back();
  CHECK_THROWS_WITH(lora->assign(wrong), ContainsSubstring("'shared': expected values"));
  wrong = good;
  wrong[0].variant = "light";
  CHECK_THROWS_WITH(lora->assign(wrong),
                    ContainsSubstring("'first': expected a classic adapter, got a light one"));
  wrong = good;
  wrong[0].trained.erase("up");
  CHECK_THROWS_WITH(lora->assign(wrong), ContainsSubstring("expected a tensor 'up', got none"));
}

TEST_CASE("patch from a state: another model is an error that counts and names", "[patch]") {
  Zoo model;
  auto state = patch<ClassicLoRA>(*model, 2, {"first", "shared"})->state();
  torch::nn::Sequential other(torch::nn::Linear(3, 4));
  CHECK_THROWS_WITH(
      patch(*other, state),
      ContainsSubstring("all 2 layers of the adapter, got 0; missing 'first' and more"));
  state[1].layer.name = "body.0";
  Zoo fresh;
  CHECK_THROWS_WITH(patch(*fresh, state),
                    ContainsSubstring("'body.0': expected an adapter for 16 -> 20, got 16 -> 16"));
}

TEST_CASE("the report reads as PEFT's does", "[patch]") {
  PatchReport report;
  report.trainable = 19200;
  report.total = 859520964;
  report.layers = 128;
  CHECK(report.to_string() == "trainable 19,200 of 859,520,964 (0.002%) in 128 layers");
}

TEST_CASE("patch: a layer names itself when the input does not fit", "[patch]") {
  torch::nn::Sequential model(torch::nn::Linear(6, 4));
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"});
  CHECK_THROWS_WITH(lora(model, torch::randn({2, 7})),
                    ContainsSubstring("'0': expected x (..., 6), got [2, 7]"));
}
