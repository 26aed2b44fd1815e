// SPDX-License-Identifier: Apache-2.0
// Variants equal PEFT's and LyCORIS' in double, on the numbers of parity/make_variants.py and
// parity/make_other_variants.py.
#include <lightlora/lightlora.h>

#include "models.h"
#include "paths.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

constexpr double kExact = 1e-12;

struct PeftCase {
  const char* name;
  const char* variant;
  LoRAOptions options;
  std::vector<std::pair<const char*, const char*>> trained;  // our name, PEFT's
  std::vector<const char*> frozen = {};                      // taken from the numbers
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

// LyCORIS', and the rest of PEFT's.
const std::vector<PeftCase>& other_cases() {
  static const std::vector<std::pair<const char*, const char*>> spectrum{
      {"q", "q"}, {"p", "p"}, {"lambda", "lambda"}};
  static const std::vector<PeftCase> all{
      {"psoft",
       "psoft",
       LoRAOptions(5).network_alpha(10),
       {{"q", "q"}, {"alpha", "alpha"}, {"beta", "beta"}},
       {"down_aux", "up_aux"}},
      {"shira", "shira", LoRAOptions(2), {{"values", "values"}}, {"rows", "columns"}},
      {"diag_oft", "diag_oft", LoRAOptions(5), {{"oft_blocks", "oft_blocks"}}},
      {"diag_oft_rescaled",
       "diag_oft",
       LoRAOptions(5).own({{"rescaled", "1"}}),
       {{"oft_blocks", "oft_blocks"}, {"rescale", "rescale"}}},
      {"diag_oft_coft",
       "diag_oft",
       LoRAOptions(5).own({{"constraint", "0.01"}}),
       {{"oft_blocks", "oft_blocks"}}},
      {"boft", "boft", LoRAOptions(10), {{"oft_blocks", "oft_blocks"}}},
      {"boft_rescaled",
       "boft",
       LoRAOptions(10).own({{"rescaled", "1"}}),
       {{"oft_blocks", "oft_blocks"}, {"rescale", "rescale"}}},
      {"boft_coft",
       "boft",
       LoRAOptions(10).own({{"constraint", "0.01"}}),
       {{"oft_blocks", "oft_blocks"}}},
      {"glora",
       "glora",
       LoRAOptions(3).network_alpha(6),
       {{"a1", "a1"}, {"a2", "a2"}, {"b1", "b1"}, {"b2", "b2"}}},
      {"tlora", "tlora", LoRAOptions(4).network_alpha(8), spectrum},
      {"tlora_last", "tlora", LoRAOptions(4).network_alpha(8).own({{"sig_type", "last"}}),
       spectrum},
      {"tlora_masked", "tlora", LoRAOptions(4).network_alpha(8).own({{"sig_type", "middle"}}),
       spectrum},
      {"full", "full", LoRAOptions(4), {{"diff", "diff"}}}};
  return all;
}

TensorMap& numbers(bool others = false) {
  static TensorMap all = SafetensorsFile(LIGHTLORA_TEST_DATA "/variants.safetensors").load_all();
  static TensorMap more =
      SafetensorsFile(LIGHTLORA_TEST_DATA "/other_variants.safetensors").load_all();
  return others ? more : all;
}

torch::nn::Sequential base_model(bool others = false) {
  torch::nn::Linear layer(24, 20);
  layer->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  layer->weight.copy_(numbers(others).at("weight"));
  layer->bias.copy_(numbers(others).at("bias"));
  return torch::nn::Sequential(layer);
}

void check_case(const PeftCase& peft, bool others) {
  INFO(peft.name);
  const auto number = [&](const std::string& name) {
    return numbers(others).at(std::string(peft.name) + "." + name);
  };
  auto model = base_model(others);
  const auto lora = patch(*model, peft.variant, peft.options, {"0"});
  const auto adapter = lora->adapters()[0];
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [ours, theirs] : peft.trained) {
      const Tensor value = number(theirs);
      REQUIRE(adapter->trained()[ours].numel() == value.numel());
      adapter->trained()[ours].copy_(value.view_as(adapter->trained()[ours]));
    }
    for (const char* name : peft.frozen) adapter->frozen()[name].copy_(number(name));
    // Singular vectors have a sign that the decompositions may choose differently.
    for (const char* name : {"q_start", "p_start", "lambda_start"}) {
      if (!adapter->frozen().contains(name)) continue;
      const Tensor own = adapter->frozen()[name], theirs = number(name).view_as(own);
      CHECK(close(own.abs(), theirs.abs(), 1e-10));
      own.copy_(theirs);
    }
  }
  if (std::string(peft.name) == "tlora_masked") set_timestep(lora, 600, 1000);
  CHECK(close(adapter->delta(numbers(others).at("weight")), number("delta"), kExact));
  const Tensor x = numbers(others).at("x").clone().requires_grad_();
  const Tensor y = lora(model, x);
  CHECK(close(y, number("y"), kExact));
  std::vector<Tensor> leaves{x};
  for (const auto& item : peft.trained) leaves.push_back(adapter->trained()[item.first]);
  const auto found = torch::autograd::grad({y}, leaves, {numbers(others).at("dy")});
  CHECK(close(found[0], number("grad.x"), kExact));
  for (std::size_t i = 0; i < peft.trained.size(); ++i) {
    const Tensor theirs = number(std::string("grad.") + peft.trained[i].second);
    CHECK(close(found[i + 1], theirs.view_as(found[i + 1]), kExact));
  }
}

}  // namespace

TEST_CASE("variants of PEFT and LyCORIS: delta, output and every gradient are theirs",
          "[variants][parity]") {
  for (const auto& peft : peft_cases()) check_case(peft, /*others=*/false);
  for (const auto& peft : other_cases()) check_case(peft, /*others=*/true);
}

// PEFT has the halves of a block one behind the other, and half the skew matrix, with the other sign.
TEST_CASE("boft: of inputs, delta, output and every gradient are PEFT's", "[variants][parity]") {
  for (const auto& [name, block, factors] :
       {std::tuple("boft_peft.", 4, 1), std::tuple("boft_peft_3.", 6, 3)}) {
    INFO(name);
    const std::string start = name;
    const auto number = [&](const std::string& key) { return numbers(true).at(start + key); };
    auto model = base_model(true);
    const auto lora = patch(
        *model, "boft", BOFTOptions(block).factors(factors).input_side(true).rescaled(true), {"0"});
    const auto adapter = lora->adapters()[0];
    CHECK(adapter->rotates_input());
    CHECK(adapter->rotates_output());
    const Tensor order = torch::arange(block).reshape({2, -1}).t().flatten();
    const auto ours = [&](const Tensor& value) {
      return value.index_select(2, order).index_select(3, order) * -0.5;
    };
    {
      const torch::NoGradGuard no_grad;
      adapter->trained()["oft_blocks"].copy_(ours(number("boft_R")));
      adapter->trained()["rescale"].copy_(number("rescale"));
    }
    CHECK(close(adapter->delta(numbers(true).at("weight")), number("delta"), kExact));
    const Tensor x = numbers(true).at("x").clone().requires_grad_();
    const Tensor y = lora(model, x);
    CHECK(close(y, number("y"), kExact));
    const auto found = torch::autograd::grad(
        {y}, {x, adapter->trained()["oft_blocks"], adapter->trained()["rescale"]},
        {numbers(true).at("dy")});
    CHECK(close(found[0], number("grad.x"), kExact));
    CHECK(close(found[1], ours(number("grad.boft_R")) * 4, kExact));
    CHECK(close(found[2], number("grad.rescale"), kExact));
  }
}

TEST_CASE("boft: blocks and factors fit the layer, whatever its width", "[variants]") {
  torch::nn::Sequential model(torch::nn::Linear(35, 320));
  const auto sizes = [&](const BOFTOptions& options) {
    const auto lora = patch(*model, "boft", options, {"0"});
    const auto found = lora->adapters()[0]->trained()["oft_blocks"].sizes().vec();
    lora->remove();
    return found;
  };
  using Sizes = std::vector<int64_t>;
  CHECK(sizes(BOFTOptions(4)) == Sizes{6, 32, 10, 10});  // 320 = 5 * 2^6
  CHECK(sizes(BOFTOptions(25)) == Sizes{5, 16, 20, 20});
  CHECK(sizes(BOFTOptions(8).factors(2)) == Sizes{2, 40, 8, 8});
  CHECK(sizes(BOFTOptions(3).factors(9)) == Sizes{6, 32, 10, 10});
  CHECK(sizes(BOFTOptions(3).input_side(true)) == Sizes{1, 7, 5, 5});
  CHECK_THROWS_WITH(patch(*model, "boft", BOFTOptions(4).factors(-1), {"0"}),
                    ContainsSubstring("'0': expected factors >= 0, got -1"));
}

TEST_CASE("diag_oft: alone at scale 1 the outputs are rotated, and the result is the same",
          "[variants]") {
  for (const char* rescaled : {"0", "1"}) {
    auto model = base_model();
    const auto options = LoRAOptions(5).own({{"rescaled", rescaled}});
    const auto lora = patch(*model, "diag_oft", options, {"0"});
    randomise(lora);
    const auto adapter = lora->adapters()[0];
    CHECK(adapter->rotates_output());
    const Tensor x = numbers().at("x"), weight = numbers().at("weight");
    const Tensor expected =
        torch::linear(x, weight + adapter->delta(weight), numbers().at("bias")).detach();
    CHECK(close(lora(model, x), expected, 1e-10));
    lora->add("second", "diag_oft", options, {"0"});  // two rotations add their deltas up
    CHECK(close(lora(model, x), expected, 1e-10));
    adapter->set_scale(0.5);
    CHECK_FALSE(adapter->rotates_output());
  }
}

TEST_CASE("tlora: fewer ranks count for noisier inputs, and all of them afterwards", "[variants]") {
  auto model = base_model();
  const auto lora = patch(*model, "tlora", LoRAOptions(4), {"0"});
  randomise(lora);
  const Tensor x = numbers().at("x"), all = lora(model, x);
  const auto ranks_at = [&](int64_t timestep) {
    set_timestep(lora, timestep, 1000, /*min_rank=*/1);
    return static_cast<int64_t>(lora->adapters()[0]->frozen()["mask"].sum().item<double>());
  };
  CHECK(ranks_at(0) == 4);
  CHECK(ranks_at(600) == 2);
  CHECK(ranks_at(1000) == 1);
  CHECK_FALSE(close(lora(model, x), all, 1e-3));
  clear_timestep(lora);
  CHECK(torch::equal(lora(model, x), all));
  CHECK_THROWS_WITH(set_timestep(patch(*base_model(), "classic", LoRAOptions(2), {"0"}), 1, 2),
                    ContainsSubstring("expected a tlora adapter"));
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
