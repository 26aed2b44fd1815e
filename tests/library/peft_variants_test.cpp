// SPDX-License-Identifier: Apache-2.0
// HiRA, MiSS, GraLoRA and OFT equal PEFT's in double, on the numbers of parity/make_variants.py.
#include <lightlora/lightlora.h>

#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

constexpr double kExact = 1e-12;

struct PeftCase {
  const char* name;
  const char* variant;
  LoRAOptions options;
  std::vector<std::pair<const char*, const char*>> trained;  // our name, PEFT's
};

const std::vector<PeftCase>& peft_cases() {
  static const std::vector<PeftCase> all{
      {"hira", "hira", LoRAOptions(3), {{"down", "hira_A"}, {"up", "hira_B"}}},
      {"miss", "miss", LoRAOptions(5), {{"block", "miss_block"}}},
      {"gralora",
       "gralora",
       LoRAOptions(4).network_alpha(8),
       {{"down", "gralora_A"}, {"up", "gralora_B"}}},
      {"gralora_4",
       "gralora",
       LoRAOptions(8).network_alpha(4).own({{"blocks", "4"}}),
       {{"down", "gralora_A"}, {"up", "gralora_B"}}},
      {"oft", "oft", LoRAOptions(1).own({{"block_size", "8"}}), {{"q", "oft_R.weight"}}},
      {"oft_3",
       "oft",
       LoRAOptions(1).own({{"block_size", "7"}, {"neumann_terms", "3"}}),
       {{"q", "oft_R.weight"}}}};
  return all;
}

TensorMap& numbers() {
  static TensorMap all = SafetensorsFile(LIGHTLORA_TEST_DATA "/variants.safetensors").load_all();
  return all;
}

torch::nn::Sequential base_model() {
  torch::nn::Linear layer(24, 20);
  layer->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  layer->weight.copy_(numbers().at("weight"));
  layer->bias.copy_(numbers().at("bias"));
  return torch::nn::Sequential(layer);
}

}  // namespace

TEST_CASE("variants of PEFT: delta, output and every gradient are PEFT's", "[variants][parity]") {
  for (const auto& peft : peft_cases()) {
    INFO(peft.name);
    const auto number = [&](const std::string& name) {
      return numbers().at(std::string(peft.name) + "." + name);
    };
    auto model = base_model();
    const auto lora = patch(*model, peft.variant, peft.options, {"0"});
    const auto adapter = lora->adapters()[0];
    {
      const torch::NoGradGuard no_grad;
      for (const auto& [ours, theirs] : peft.trained) {
        REQUIRE(adapter->trained()[ours].sizes() == number(theirs).sizes());
        adapter->trained()[ours].copy_(number(theirs));
      }
    }
    CHECK(close(adapter->delta(numbers().at("weight")), number("delta"), kExact));
    const Tensor x = numbers().at("x").clone().requires_grad_();
    const Tensor y = lora(model, x);
    CHECK(close(y, number("y"), kExact));
    std::vector<Tensor> leaves{x};
    for (const auto& item : peft.trained) leaves.push_back(adapter->trained()[item.first]);
    const auto found = torch::autograd::grad({y}, leaves, {numbers().at("dy")});
    CHECK(close(found[0], number("grad.x"), kExact));
    for (std::size_t i = 0; i < peft.trained.size(); ++i) {
      CHECK(close(found[i + 1], number(std::string("grad.") + peft.trained[i].second), kExact));
    }
  }
}

TEST_CASE("oft: the exact rotation is orthogonal, and the series comes near it", "[variants]") {
  const auto delta_with = [](const std::string& terms, double size) {
    auto model = base_model();
    const auto lora = patch(
        *model, "oft", LoRAOptions(1).own({{"block_size", "8"}, {"neumann_terms", terms}}), {"0"});
    const torch::NoGradGuard no_grad;
    torch::manual_seed(3);
    lora->parameters()[0].copy_(torch::randn({3, 28}, torch::kDouble) * size);
    return lora->adapters()[0]->delta(numbers().at("weight"));
  };
  const Tensor weight = numbers().at("weight"), turned = weight + delta_with("0", 0.5);
  CHECK(close(turned.mm(turned.t()), weight.mm(weight.t()), 1e-10));
  CHECK(close(delta_with("5", 0.01), delta_with("0", 0.01), 1e-3));
  CHECK_FALSE(close(delta_with("2", 0.1), delta_with("0", 0.1), 1e-3));
}

TEST_CASE("oft: alone at scale 1 no delta is formed, and the result is the same", "[variants]") {
  auto model = base_model();
  const auto options = LoRAOptions(1).own({{"block_size", "8"}});
  const auto lora = patch(*model, "oft", options, {"0"});
  randomise(lora);
  const auto adapter = lora->adapters()[0];
  CHECK(adapter->rotates_input());
  const Tensor x = numbers().at("x"), weight = numbers().at("weight");
  const Tensor expected =
      torch::linear(x, weight + adapter->delta(weight), numbers().at("bias")).detach();
  CHECK(close(lora(model, x), expected, kExact));
  lora->add("second", "oft", options, {"0"});  // two rotations add their deltas up
  CHECK(close(lora(model, x), expected, kExact));
  CHECK_FALSE(patch(*base_model(), "oft", LoRAOptions(1).network_alpha(2), {"0"})
                  ->adapters()[0]
                  ->rotates_input());
}

TEST_CASE("oft and gralora: sizes that do not divide are fitted, and said", "[variants]") {
  torch::nn::Sequential model(torch::nn::Linear(70, 90));
  const auto oft = patch(*model, "oft", LoRAOptions(1), {"0"});
  CHECK(oft->adapters()[0]->trained()["q"].sizes() == torch::IntArrayRef({2, 35 * 34 / 2}));
  CHECK_THAT(oft->adapters()[0]->description(), ContainsSubstring(", blocks of 35"));
  oft->remove();
  const auto blocks = patch(*model, "gralora", LoRAOptions(10).own({{"blocks", "4"}}), {"0"});
  CHECK(blocks->adapters()[0]->trained()["down"].sizes() == torch::IntArrayRef({2, 35, 10}));
  CHECK_THAT(blocks->adapters()[0]->description(), ContainsSubstring(", clamped to 2 blocks"));
  CHECK_THROWS_WITH(patch(*base_model(), "oft", LoRAOptions(1).own({{"block_size", "1"}}), {"0"}),
                    ContainsSubstring("expected block_size >= 2, got 1"));
}
