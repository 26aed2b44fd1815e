// SPDX-License-Identifier: Apache-2.0
// AdaLoRA against PEFT: the budget step by step on the same gradients, and its files both ways.
// tests/parity/make_adalora.py made them.
#include <lightlora/detail/formats/json.h>
#include <lightlora/lightlora.h>

#include <fstream>
#include <sstream>

#include "models.h"
#include "paths.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

const std::string kData = std::string(LIGHTLORA_TEST_DATA) + "/adalora/";
constexpr int64_t kSteps = 14;

const TensorMap& numbers() {
  static const TensorMap all = SafetensorsFile(kData + "numbers.safetensors").load_all();
  return all;
}

torch::nn::Sequential base_of_peft() {
  torch::nn::Sequential model(torch::nn::Linear(12, 10), torch::nn::Tanh(),
                              torch::nn::Linear(10, 8));
  model->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    item.value().copy_(numbers().at("base." + item.key()));
  }
  return model;
}

AdaLoRAOptions options_of_peft() {
  return AdaLoRAOptions(4).target_r(2).tinit(2).tfinal(3).delta_t(2);
}

const std::vector<std::pair<const char*, const char*>> kNames{
    {"down", "lora_A"}, {"lambda", "lora_E"}, {"up", "lora_B"}};

const Tensor& number_of(const std::string& when, const Adapter& adapter, const char* name) {
  return numbers().at(when + "." + adapter.layer().name + "." + name);
}

// As PEFT's: their scale, and their factors at the start.
void start_as_peft(const Patched& lora) {
  const torch::NoGradGuard no_grad;
  for (const auto& adapter : lora->adapters()) {
    adapter->set_scale(6 / (4 + 1e-5));
    for (const auto& [ours, theirs] : kNames) {
      adapter->trained()[ours].copy_(number_of("start", *adapter, theirs));
    }
  }
}

Tensor output_of(const std::string& folder) {
  auto model = base_of_peft();
  const auto lora = patch(*model, read_state(folder));
  const torch::NoGradGuard no_grad;
  return lora(model, numbers().at("x"));
}

}  // namespace

TEST_CASE("adalora: budget, ranks and factors are PEFT's after every step", "[adalora][parity]") {
  auto model = base_of_peft();
  const auto lora = patch<AdaLoRA>(*model, options_of_peft(), {"0", "2"});
  start_as_peft(lora);
  torch::optim::SGD optimizer(lora->parameters(), torch::optim::SGDOptions(0.2));
  RankBudget budget(lora, kSteps);
  for (int64_t step = 0; step < kSteps; ++step) {
    INFO("step " << step);
    optimizer.zero_grad();
    const Tensor loss = torch::mse_loss(lora(model, numbers().at("x")), numbers().at("target"));
    (loss + 0.5 * orthogonality(lora)).backward();
    optimizer.step();
    CHECK(budget.step(step) == numbers().at("budget")[step].item<int64_t>());
    for (const auto& adapter : lora->adapters()) {
      for (const auto& [ours, theirs] : kNames) {
        INFO(adapter->layer().name << " " << ours);
        const Tensor& expected = number_of(std::to_string(step), *adapter, theirs);
        CHECK(close(adapter->trained()[ours], expected, 1e-9));
        CHECK(torch::equal(adapter->trained()[ours] == 0, expected == 0));
      }
    }
  }
  CHECK(close(lora(model, numbers().at("x")), numbers().at("y"), 1e-9));
}

TEST_CASE("adalora: a budget goes on from its state as if it had never stopped", "[adalora]") {
  const auto run = [](int64_t stop) {
    auto model = base_of_peft();
    const auto lora = patch<AdaLoRA>(*model, options_of_peft(), {"0", "2"});
    start_as_peft(lora);
    auto budget = std::make_unique<RankBudget>(lora, kSteps);
    for (int64_t step = 0; step < kSteps; ++step) {
      if (step == stop) {
        const auto state = budget->state();
        budget = std::make_unique<RankBudget>(lora, kSteps);
        budget->load_state(state);
      }
      for (const auto& parameter : lora->parameters()) parameter.mutable_grad() = Tensor();
      torch::mse_loss(lora(model, numbers().at("x")), numbers().at("target")).backward();
      {
        const torch::NoGradGuard no_grad;
        for (auto parameter : lora->parameters()) parameter.sub_(parameter.grad(), 0.2);
      }
      budget->step(step);
    }
    return lora->values().detach();
  };
  const Tensor whole = run(-1);
  for (const int64_t stop : {1, 5, 12}) CHECK(torch::equal(run(stop), whole));
}

TEST_CASE("adalora: PEFT's folders compute what PEFT computes, and are written alike",
          "[adalora][peft]") {
  const ScratchFolder folder;
  const char* keep = std::getenv("LIGHTLORA_KEEP_PEFT");  // for make_adalora.py --check
  CHECK(close(output_of(kData + "trained"), numbers().at("y"), 1e-5));
  for (const std::string name : {"trained", "untrained"}) {
    INFO(name);
    const std::string written = (keep ? keep + std::string("/") : folder.file("")) + name;
    auto model = base_of_peft();
    save(patch(*model, read_state(kData + name)), written, Format::peft);
    CHECK(close(output_of(written), output_of(kData + name), 1e-6));
    const std::string file = "/adapter_model.safetensors";
    const auto expected = SafetensorsFile(kData + name + file).load_all();
    const auto found = SafetensorsFile(written + file).load_all();
    REQUIRE(found.size() == expected.size());
    for (const auto& [key, value] : expected) {
      INFO(key);
      REQUIRE(found.count(key) == 1);
      CHECK(close(found.at(key), value, 1e-6));
    }
    std::ifstream config(written + "/adapter_config.json");
    std::stringstream text;
    text << config.rdbuf();
    const auto json = parse_json(text.str());
    CHECK(json.find("peft_type")->string() == "ADALORA");
    // The file read has two ranks left of four, which are all that it knows of.
    CHECK(json.find("init_r")->integer() == (name == "trained" ? 2 : 4));
    CHECK(json.find("rank_pattern") == nullptr);
  }
}

TEST_CASE("adalora: ranks that were taken away are in no file of other programs", "[adalora]") {
  const ScratchFolder folder;
  auto model = base_of_peft();
  const auto lora = patch<AdaLoRA>(*model, options_of_peft(), {"0", "2"});
  start_as_peft(lora);
  {
    const torch::NoGradGuard no_grad;
    lora->adapters()[0]->trained()["lambda"].narrow(0, 1, 2).zero_();
    lora->adapters()[1]->trained()["lambda"].zero_();
  }
  const Tensor x = numbers().at("x"), expected = lora(model, x).detach();
  const auto classic = to_classic(lora);
  CHECK(classic[0].options.rank() == 2);
  CHECK(classic[1].options.rank() == 1);
  save(lora, folder.file("peft"), Format::peft);
  const auto tensors =
      SafetensorsFile(folder.file("peft") + "/adapter_model.safetensors").load_all();
  CHECK(tensors.at("base_model.model.0.lora_A").size(0) == 2);
  CHECK(tensors.at("base_model.model.2.lora_A").size(0) == 0);
  CHECK(close(output_of(folder.file("peft")), expected, 1e-6));
  lora->remove();
  CHECK(close(patch(*model, classic)(model, x), expected, 1e-6));
}

TEST_CASE("adalora: what a budget cannot do is refused", "[adalora]") {
  auto model = base_of_peft();
  const auto lora = patch<AdaLoRA>(*model, options_of_peft(), {"0", "2"});
  CHECK_THROWS_WITH(RankBudget(lora, 5), ContainsSubstring("expected more than 5 steps in all"));
  RankBudget budget(lora, kSteps);
  CHECK_THROWS_WITH(budget.step(0), ContainsSubstring("expected gradients to weigh ranks by"));
  CHECK_THROWS_WITH(budget.load_state({}), ContainsSubstring("'0': expected the budget's"));
  lora->remove();
  CHECK_THROWS_WITH(patch<AdaLoRA>(*model, AdaLoRAOptions(4).target_r(5), {"0"}),
                    ContainsSubstring("'0': expected 0 <= target_r <= 4 (the rank), got 5"));
  const auto classic = patch<ClassicLoRA>(*model, 2, {"0"});
  CHECK_THROWS_WITH(RankBudget(classic, kSteps), ContainsSubstring("expected an adalora adapter"));
}
