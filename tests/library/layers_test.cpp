// SPDX-License-Identifier: Apache-2.0
// Layers beyond those of the property tests, and how adapted layers behave in training and in threads.
#include <ATen/autocast_mode.h>
#include <lightlora/linear.h>

#include <thread>

#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

// Self-attention, or attention to something of other widths.
struct AttentionImpl : torch::nn::Module {
  explicit AttentionImpl(bool other_widths) {
    auto options = torch::nn::MultiheadAttentionOptions(24, 3);
    if (other_widths) options.kdim(20).vdim(20);  // LibTorch asks for equal ones
    attention = register_module("attention", torch::nn::MultiheadAttention(options));
    source = random_input({5, 2, other_widths ? 20 : 24});
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) { return std::get<0>(attention(x, source, source)); }
  torch::nn::MultiheadAttention attention{nullptr};
  Tensor source;
};
TORCH_MODULE(Attention);

torch::nn::Sequential two_layers(bool drop_in) {
  torch::manual_seed(4);
  torch::nn::Sequential model;
  if (drop_in) {
    model->push_back(lightlora::Linear(40, 30));
    model->push_back(torch::nn::ReLU());
    model->push_back(lightlora::Linear(30, 20));
  } else {
    model->push_back(torch::nn::Linear(40, 30));
    model->push_back(torch::nn::ReLU());
    model->push_back(torch::nn::Linear(30, 20));
  }
  return model;
}

struct Refused : torch::nn::Module {
  Refused() {
    register_module("mix", torch::nn::Bilinear(3, 4, 5));
    register_module("memory", torch::nn::LSTM(3, 4));
    register_module("cell", torch::nn::GRUCell(3, 4));
    register_module("up", torch::nn::ConvTranspose2d(3, 4, 2));
    register_module("bag", torch::nn::EmbeddingBag(3, 4));
    register_module("fc", torch::nn::Linear(3, 4));
  }
};

}  // namespace

TEST_CASE("attention: the input and output projections carry every variant", "[layers]") {
  for (const bool other_widths : {false, true}) {
    for (const auto& recipe : recipes()) {
      INFO(recipe.name << (other_widths ? " with kdim and vdim" : ""));
      torch::manual_seed(3);
      Attention model(other_widths);
      const Tensor x = random_input({4, 2, 24}), base = model(x);
      const auto lora = patch(*model, recipe.variant, recipe.options, Targets::all_linear());
      std::vector<std::string> paths;
      for (const auto& adapter : lora->adapters()) paths.push_back(adapter->layer().name);
      using Paths = std::vector<std::string>;
      CHECK(paths == (other_widths ? Paths{"attention.q_proj", "attention.k_proj", "attention.v_proj",
                                           "attention.out_proj"}
                                   : Paths{"attention.in_proj", "attention.out_proj"}));
      CHECK(close(lora(model, x), base, 1e-12));
      randomise(lora);
      const Tensor adapted = lora(model, x);
      CHECK(relative_error(adapted, base) > 1e-3);
      adapted.square().sum().backward();
      for (const auto& parameter : lora->parameters()) {
        CHECK(parameter.grad().norm().item<double>() > 0);
      }
      for (const auto& parameter : model->parameters()) CHECK_FALSE(parameter.grad().defined());
      lora->merge();
      CHECK(close(model(x), adapted, 1e-10));
      lora->unmerge();
      CHECK(torch::equal(model(x), base));
    }
  }
}

TEST_CASE("layers that cannot be adapted are refused with the reason", "[layers]") {
  const auto model = std::make_shared<Refused>();
  const std::pair<const char*, const char*> cases[] = {
      {"mix", "'mix', a torch::nn::BilinearImpl: its weight has three dimensions"},
      {"memory", "'memory', a torch::nn::LSTMImpl: a recurrent layer passes its weights on"},
      {"cell", "'cell', a torch::nn::GRUCellImpl: a recurrent layer passes its weights on"},
      {"up", "'up', a torch::nn::ConvTranspose2dImpl: the weight of a transposed convolution"},
      {"bag", "'bag', a torch::nn::EmbeddingBagImpl: its rows are summed in one kernel"}};
  for (const auto& [target, message] : cases) {
    CHECK_THROWS_WITH(patch<ClassicLoRA>(*model, 2, {target}), ContainsSubstring(message));
  }
  CHECK(patch<ClassicLoRA>(*model, 2, Targets::all())->report().layers == 1);
}

TEST_CASE("dropout: only training of drop-in layers leaves out inputs, and the mean stays",
          "[layers]") {
  for (const char* variant : {"classic", "lokr"}) {
    INFO(variant);
    auto model = two_layers(/*drop_in=*/true);
    const Tensor x = random_input({1, 40}).to(torch::kFloat);
    const auto lora = patch(*model, variant, LoRAOptions(3).dropout(0.5), {"0"});
    randomise(lora);
    auto first = model->ptr<lightlora::LinearImpl>(0);
    const auto on = lora->activate();
    torch::NoGradGuard no_grad;
    model->eval();
    const Tensor exact = first->forward(x);
    CHECK(torch::equal(first->forward(x), exact));
    model->train();
    torch::manual_seed(0);
    CHECK_FALSE(torch::equal(first->forward(x), first->forward(x)));
    const Tensor many = first->forward(x.expand({20000, 40})).mean(0, true);
    const Tensor base = torch::linear(x, first->weight, first->bias);
    CHECK(close(many - base, exact - base, 0.05));  // the error of a mean of 20,000 draws
    lora->eval();
    CHECK(close(first->forward(x), exact, 1e-5));
  }
  auto plain = two_layers(/*drop_in=*/false);
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*plain, LoRAOptions(3).dropout(0.5), {"0"}),
                    ContainsSubstring("'0': expected dropout 0 for a plain layer"));
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*plain, LoRAOptions(3).dropout(1.0), {"0"}),
                    ContainsSubstring("expected 0 <= dropout < 1, got 1"));
}

TEST_CASE("dropout: drop-in convolutions leave out inputs in training only, and the mean stays",
          "[layers]") {
  for (const char* variant : {"classic", "lokr"}) {
    INFO(variant);
    torch::manual_seed(5);
    torch::nn::Sequential model(
        lightlora::Conv2d(torch::nn::Conv2dOptions(6, 8, 3).padding(1).stride(2)));
    const auto lora = patch(*model, variant, LoRAOptions(3).dropout(0.5), {"0"});
    randomise(lora);
    const auto on = lora->activate();
    torch::NoGradGuard no_grad;
    const Tensor x = torch::randn({1, 6, 9, 9});
    auto layer = model->ptr<lightlora::Conv2dImpl>(0);
    const Tensor base = torch::conv2d(x, layer->weight, layer->bias, /*stride=*/2, /*padding=*/1);
    model->eval();
    const Tensor exact = layer->forward(x);
    model->train();
    CHECK_FALSE(torch::equal(layer->forward(x), layer->forward(x)));
    const Tensor mean = layer->forward(x.expand({4000, 6, 9, 9})).mean(0, true);
    CHECK(close(mean - base, exact - base, 0.05));  // the error of a mean of 4,000 draws
    lora->eval();
    CHECK(close(layer->forward(x), exact, 1e-5));
  }
}

TEST_CASE("autocast: drop-in layers compute in its dtype, adapters get fp32 gradients", "[layers]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = two_layers(/*drop_in=*/true);
    const auto lora = patch(*model, recipe.variant, recipe.options, Targets::all_linear());
    randomise(lora);
    const Tensor x = random_input({6, 40}).to(torch::kFloat), exact = lora(model, x);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const Tensor half = lora(model, x);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    CHECK(half.scalar_type() == at::kBFloat16);
    CHECK(close(half, exact, 3e-2));  // two layers of eight bits
    half.sum().backward();
    for (const auto& parameter : lora->parameters()) {
      CHECK(parameter.grad().scalar_type() == at::kFloat);
    }
  }
}

TEST_CASE("half precision: training through a drop-in layer keeps small steps of any variant",
          "[layers]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = two_layers(/*drop_in=*/true);
    model->to(torch::kBFloat16);
    const auto lora = patch(*model, recipe.variant, recipe.options, Targets::all_linear());
    const Tensor x = random_input({6, 40}).to(torch::kBFloat16);
    lora(model, x).sum().backward();
    double norm = 0;
    for (const auto& parameter : lora->parameters()) {
      CHECK(parameter.scalar_type() == at::kFloat);
      norm += parameter.grad().norm().item<double>();
    }
    CHECK(norm > 0);
  }
}

TEST_CASE("threads: many may run one active model at a time", "[layers]") {
  for (const bool drop_in : {false, true}) {
    for (const char* variant : {"classic", "light", "lokr"}) {
      INFO(variant << (drop_in ? " drop-in" : " plain"));
      auto model = two_layers(drop_in);
      const auto lora = patch(*model, variant, LoRAOptions(3), Targets::all_linear());
      randomise(lora);
      const auto on = lora->activate();
      std::vector<Tensor> inputs, expected, results(8);
      for (int i = 0; i < 8; ++i) {
        torch::NoGradGuard no_grad;
        inputs.push_back(torch::randn({3 + i, 40}));
        expected.push_back(model->forward(inputs.back()));
      }
      std::vector<std::thread> threads;
      for (int i = 0; i < 8; ++i) {
        threads.emplace_back([&, i] {
          torch::NoGradGuard no_grad;
          for (int repeat = 0; repeat < 20; ++repeat) results[i] = model->forward(inputs[i]);
        });
      }
      for (auto& thread : threads) thread.join();
      for (int i = 0; i < 8; ++i) CHECK(close(results[i], expected[i], 1e-6));
    }
  }
}

TEST_CASE("moving: a cast while active, or adapters left behind, are errors", "[layers]") {
  auto model = two_layers(/*drop_in=*/false);
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all_linear());
  {
    const auto on = lora->activate();
    model->to(torch::kDouble);
    CHECK_THROWS_WITH(lora->activate(), ContainsSubstring("moved or cast since"));
    CHECK_THROWS_WITH(lora->to(torch::kCPU), ContainsSubstring("expected no activation"));
    CHECK_THROWS_WITH(lora->add("late", "classic", 2, {"0"}),
                      ContainsSubstring("expected no activation"));
  }
  CHECK(model->forward(torch::ones({1, 40}, torch::kDouble)).scalar_type() == torch::kDouble);
  if (!torch::cuda::is_available()) return;  // the rest needs a second device
  model->to(torch::kCUDA);
  CHECK_THROWS_WITH(lora->activate(),
                    ContainsSubstring("'0': expected the adapter 'default' on cuda:0") &&
                        ContainsSubstring("hint: lora->to(device)"));
  lora->to(torch::kCUDA);
  CHECK_NOTHROW(lora->activate());
}

TEST_CASE("adapters keep fp32 when the model is moved to half precision", "[layers]") {
  auto model = two_layers(/*drop_in=*/true);
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all_linear());
  model->to(torch::kHalf);
  for (const auto& parameter : lora->parameters()) CHECK(parameter.scalar_type() == at::kFloat);
}
