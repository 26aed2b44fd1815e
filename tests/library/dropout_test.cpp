// SPDX-License-Identifier: Apache-2.0
// Dropout by rank and by module: who is left out, how often, and where it cannot be.
#include <lightlora/lightlora.h>

#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

Tensor rows() {
  torch::manual_seed(2);
  return torch::randn({5, 12});
}

torch::nn::Sequential one_layer() { return torch::nn::Sequential(torch::nn::Linear(12, 9)); }

// The convolution takes the rows as its channels.
torch::nn::Sequential two_kinds() {
  torch::manual_seed(1);
  return torch::nn::Sequential(torch::nn::Linear(12, 8), torch::nn::Conv1d(5, 3, 3));
}

}  // namespace

TEST_CASE(
    "rank_dropout leaves out the ranks that PyTorch's generator names, as LyCORIS does, and "
    "the others count more",
    "[dropout]") {
  auto model = one_layer();
  const Tensor x = rows();
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(6).rank_dropout(0.4), {"0"});
  randomise(lora);
  const auto trained = lora->adapters()[0]->trained();
  torch::manual_seed(5);
  const Tensor y = lora(model, x);
  torch::manual_seed(5);
  const Tensor kept = torch::rand({6}).gt(0.4).to(torch::kFloat);
  CHECK(kept.sum().item<double>() < 6);
  const Tensor down = trained["down"] * (kept / 0.6).unsqueeze(1);
  CHECK(close(y, model->forward(x) + x.mm(down.t()).mm(trained["up"].t()), 1e-5));
  lora->eval();
  const Tensor delta = trained["up"].mm(trained["down"]);
  CHECK(close(lora(model, x), model->forward(x) + x.mm(delta.t()), 1e-5));
}

TEST_CASE("module_dropout leaves out whole adapters, as often as it says, with no gradient then",
          "[dropout]") {
  for (const char* variant : {"classic", "lokr"}) {
    INFO(variant);
    auto model = two_kinds();
    const Tensor x = rows();
    const auto lora = patch(*model, variant, LoRAOptions(2).module_dropout(0.25), {"0", "1"});
    randomise(lora);
    const Tensor base = model->forward(x);
    int left_out = 0;
    torch::manual_seed(2);
    for (int i = 0; i < 200; ++i) {
      const Tensor y = lora(model, x);
      if (!torch::equal(y, base)) continue;
      ++left_out;
      for (auto& parameter : lora->parameters()) parameter.mutable_grad() = Tensor();
      y.sum().backward();
      for (const auto& parameter : lora->parameters()) {
        CHECK(parameter.grad().norm().item<double>() == 0);
      }
    }
    // Both layers at once: 1/16 of 200 is 12.5, within four standard deviations.
    CHECK(left_out > 1);
    CHECK(left_out < 27);
    lora->eval();
    CHECK_FALSE(torch::equal(lora(model, x), base));
  }
}

TEST_CASE("dropouts outside of [0, 1), or of what has no ranks, are refused", "[dropout]") {
  auto model = one_layer();
  const auto fails = [&](const char* variant, const LoRAOptions& options, const char* message) {
    CHECK_THROWS_WITH(patch(*model, variant, options, {"0"}), ContainsSubstring(message));
  };
  fails("classic", LoRAOptions(2).rank_dropout(1), "'0': expected 0 <= rank_dropout < 1, got 1");
  fails("classic", LoRAOptions(2).module_dropout(-0.1), "expected 0 <= module_dropout < 1");
  fails("hira", LoRAOptions(2).rank_dropout(0.1),
        "'0': rank_dropout cannot be combined with the hira variant");
  fails("classic", LoRAOptions(2).dora(true).rank_dropout(0.1), "cannot be combined with DoRA");
  torch::nn::Sequential recurrent(torch::nn::LSTM(4, 3));
  CHECK_THROWS_WITH(
      patch<ClassicLoRA>(*recurrent, LoRAOptions(2).module_dropout(0.1), {"0.weight_ih_l0"}),
      ContainsSubstring("expected dropout 0 for an adapter that is a part of the weight"));
}
