// SPDX-License-Identifier: Apache-2.0
// Layers beyond those of the property tests, and how adapted layers behave in training and in
// threads.
#include <ATen/autocast_mode.h>

#include "data_parallel.h"
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

torch::nn::Sequential two_layers() {
  torch::manual_seed(4);
  return torch::nn::Sequential(torch::nn::Linear(40, 30), torch::nn::ReLU(),
                               torch::nn::Linear(30, 20));
}

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
      CHECK(paths == (other_widths ? Paths{"attention.q_proj", "attention.k_proj",
                                           "attention.v_proj", "attention.out_proj"}
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

TEST_CASE("dropout: it has a range, and needs an input of the adapter's own", "[layers]") {
  auto plain = two_layers();
  CHECK_THROWS_WITH(patch<ClassicLoRA>(*plain, LoRAOptions(3).dropout(1.0), {"0"}),
                    ContainsSubstring("expected 0 <= dropout < 1, got 1"));
  torch::nn::Sequential recurrent(torch::nn::GRU(6, 5));
  CHECK_THROWS_WITH(
      patch<ClassicLoRA>(*recurrent, LoRAOptions(3).dropout(0.5), Targets::all()),
      ContainsSubstring("expected dropout 0 for an adapter that is a part of the weight"));
  const auto lora = patch<ClassicLoRA>(*plain, LoRAOptions(3).dropout(0.5), {"0"});
  CHECK_THROWS_WITH(lora->bind_weights({"0"}), ContainsSubstring("expected dropout 0"));
}

TEST_CASE("autocast: layers compute in its dtype, adapters get fp32 gradients", "[layers]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = two_layers();
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

TEST_CASE("half precision: training keeps small steps of any variant", "[layers]") {
  for (const auto& recipe : recipes()) {
    INFO(recipe.name);
    auto model = two_layers();
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

TEST_CASE("moving: a cast while active, or adapters left behind, are errors", "[layers][cuda]") {
  auto model = two_layers();
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
  auto model = two_layers();
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all_linear());
  model->to(torch::kHalf);
  for (const auto& parameter : lora->parameters()) CHECK(parameter.scalar_type() == at::kFloat);
}

TEST_CASE("an embedding keeps its padding row and every row that is not seen, as in PEFT",
          "[layers]") {
  for (const std::string variant : {"classic", "light", "loha"}) {
    INFO(variant);
    torch::manual_seed(1);
    torch::nn::Sequential model(
        torch::nn::Embedding(torch::nn::EmbeddingOptions(60, 40).padding_idx(0)));
    LoRAOptions options(3);
    if (find_variant(variant).takes("aux_in")) options.own({{"aux_in", "20"}, {"aux_out", "10"}});
    const auto lora = patch(*model, variant, options, {"0"});
    torch::optim::AdamW optimizer(lora->parameters(), torch::optim::AdamWOptions(1e-2));
    const Tensor ids = torch::tensor({0, 3, 5, 0, 7});
    for (int step = 0; step < 20; ++step) {
      optimizer.zero_grad();
      lora(model, ids).square().sum().backward();
      optimizer.step();
    }
    const Tensor all = torch::arange(60);
    const auto rows = [&](const Tensor& y, int64_t row) { return y[row].clone(); };
    const Tensor base = model->forward(all), adapted = lora(model, all).detach();
    CHECK(torch::equal(rows(adapted, 0), rows(base, 0)));
    CHECK_FALSE(torch::equal(rows(adapted, 3), rows(base, 3)));
    if (variant == "classic") CHECK(torch::equal(rows(adapted, 50), rows(base, 50)));
    lora->merge();
    CHECK(torch::equal(rows(model->forward(all), 0), rows(base, 0)));
  }
}

TEST_CASE("a child of a model is cloned with its values, cast but for its adapter", "[layers]") {
  struct NetImpl : torch::nn::Cloneable<NetImpl> {
    NetImpl() { reset(); }
    void reset() override {
      layer = register_module(
          "layer", ClassicLoRA<torch::nn::Linear>(torch::nn::Linear(8, 6), LoRAOptions(2)));
    }
    Tensor forward(const Tensor& x) { return layer->forward(x); }
    ClassicLoRA<torch::nn::Linear> layer{nullptr};
  };
  NetImpl net;
  {
    const torch::NoGradGuard no_grad;
    net.layer->adapter->up.normal_();
  }
  net.layer->adapter->down.set_requires_grad(false);
  net.eval();
  const Tensor x = torch::randn({4, 8});
  const auto copy = std::dynamic_pointer_cast<NetImpl>(net.clone());
  REQUIRE(copy);
  CHECK(torch::equal(copy->forward(x), net.forward(x)));
  CHECK_FALSE(copy->layer->is_training());
  CHECK_FALSE(copy->layer->adapter->is_training());
  CHECK_FALSE(copy->layer->adapter->down.requires_grad());
  CHECK_FALSE(copy->layer->base->weight.requires_grad());
  CHECK(copy->parameters().size() == net.parameters().size());
  {
    const torch::NoGradGuard no_grad;
    copy->layer->adapter->up.zero_();
  }
  CHECK_FALSE(torch::equal(copy->forward(x), net.forward(x)));
  net.to(torch::kHalf);
  CHECK(net.layer->base->weight.scalar_type() == torch::kHalf);
  CHECK(net.layer->adapter->up.scalar_type() == torch::kFloat);
  CHECK(net.forward(x.to(torch::kHalf)).scalar_type() == torch::kHalf);
}

TEST_CASE(
    "a patched model as one module: replicas of data_parallel are adapted and train its adapters",
    "[layers]") {
#if LIGHTLORA_TESTS_DATA_PARALLEL
  for (const std::string variant : {"classic", "light", "lokr"}) {
    INFO(variant);
    auto model = two_layers();
    LoRAOptions options(3);
    const auto lora = patch(*model, variant, options, Targets::all_linear(), "one");
    lora->add("two", "classic", LoRAOptions(2), {"2"});
    randomise(lora);
    lora->set_active({{"one", 1.0}, {"two", -0.5}});
    const Tensor x = random_input({6, 40}).to(torch::kFloat);
    const auto gradients = [&](const Tensor& y) {
      for (auto& parameter : lora->parameters()) parameter.mutable_grad() = Tensor();
      y.square().sum().backward();
      std::vector<Tensor> all;
      for (const auto& parameter : lora->parameters()) all.push_back(parameter.grad().clone());
      return all;
    };
    const Tensor alone = lora(model, x);
    const auto expected = gradients(alone);

    AdaptedModel<torch::nn::Sequential> whole(model, lora);
    CHECK(torch::equal(whole->forward(x), alone));
    const std::vector<torch::Device> devices(2, torch::kCPU);
    auto replicas = torch::nn::parallel::replicate(whole, devices);
    const auto parts =
        torch::nn::parallel::parallel_apply(replicas, {x.narrow(0, 0, 2), x.narrow(0, 2, 4)});
    const Tensor y = torch::cat({parts[0], parts[1]});
    CHECK(close(y, alone, 1e-6));
    const auto found = gradients(y);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], 1e-5));
  }
#else
  WARN(kNoDataParallel);
#endif
}
