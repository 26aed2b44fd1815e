// SPDX-License-Identifier: Apache-2.0
// Weights and biases of norms, and biases of layers, beside adapters: `Targets::vectors`.
#include <lightlora/lightlora.h>

#include <map>

#include "support.h"

using namespace lightlora;
using torch::Tensor;

namespace {

// One of each layer whose vectors can train.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    conv = register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 6, 3).padding(1)));
    group = register_module("group", torch::nn::GroupNorm(torch::nn::GroupNormOptions(2, 6)));
    proj = register_module("proj", torch::nn::Linear(6, 8));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({8})));
    plain = register_module("plain", torch::nn::Linear(torch::nn::LinearOptions(8, 5).bias(false)));
  }
  Tensor forward(const Tensor& x) {
    const Tensor pixels = torch::silu(group(conv(x))).flatten(2).transpose(1, 2);
    return plain(norm(proj(pixels)));
  }
  torch::nn::Conv2d conv{nullptr};
  torch::nn::GroupNorm group{nullptr};
  torch::nn::Linear proj{nullptr}, plain{nullptr};
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(Net);

const std::vector<std::string> kVectors{"conv.bias", "group.weight", "group.bias",
                                        "proj.bias", "norm.weight",  "norm.bias"};

Net make_net(torch::ScalarType dtype = torch::kDouble) {
  torch::manual_seed(4);
  Net net;
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : net->parameters()) parameter.normal_(0.2, 0.5);
  }
  net->to(dtype);
  return net;
}

Tensor input(torch::ScalarType dtype = torch::kDouble) {
  torch::manual_seed(5);
  return torch::randn({2, 4, 3, 3}, torch::kDouble).to(dtype);
}

Targets everything() {
  return Targets{"conv", "proj", "plain"}.vectors({Targets::norms(), Targets::biases()});
}

void randomise(const Patched& lora) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(6);
  for (auto parameter : lora->parameters()) {
    parameter.copy_(torch::randn(parameter.sizes(), torch::kDouble) * 0.3);
  }
}

}  // namespace

TEST_CASE("vectors: a set has them beside its adapters, and a new one changes no bit",
          "[vectors]") {
  auto net = make_net(torch::kFloat);
  const Tensor x = input(torch::kFloat), before = net(x);
  const auto lora = patch<ClassicLoRA>(*net, 2, everything());
  CHECK(torch::equal(lora(net, x), before));
  std::map<std::string, std::string> variants;
  for (const auto& adapter : lora->adapters()) {
    variants[adapter->layer().name] = adapter->variant();
    CHECK(adapter->layer().is_vector() == (adapter->variant() == "full"));
  }
  CHECK(variants.size() == 9);
  for (const auto& name : kVectors) CHECK(variants.at(name) == "full");
  CHECK(variants.at("plain") == "classic");
}

TEST_CASE("vectors: output and gradients are those of a model whose own vectors train",
          "[vectors]") {
  auto net = make_net(), plain = make_net();
  const auto lora =
      patch<ClassicLoRA>(*net, 2, Targets().vectors({Targets::norms(), "conv.bias", "proj.bias"}));
  randomise(lora);
  std::vector<Tensor> leaves;
  const auto parameters = plain->named_parameters();
  {
    const torch::NoGradGuard no_grad;
    for (const auto& adapter : lora->adapters()) {
      Tensor own = parameters[adapter->layer().name];
      own.add_(adapter->trained()["diff"].flatten());
    }
  }
  const Tensor x = input().requires_grad_(), dy = torch::randn({2, 9, 5}, torch::kDouble);
  const Tensor y = lora(net, x), expected = plain(x);
  CHECK(close(y, expected, 1e-12));
  std::vector<Tensor> ours{x}, theirs{x};
  for (const auto& adapter : lora->adapters()) {
    ours.push_back(adapter->trained()["diff"]);
    theirs.push_back(parameters[adapter->layer().name]);
  }
  const auto found = torch::autograd::grad({y}, ours, {dy});
  const auto wanted = torch::autograd::grad({expected}, theirs, {dy});
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(close(found[i].flatten(), wanted[i].flatten(), 1e-12));
  }
  for (const auto& parameter : net->parameters()) CHECK_FALSE(parameter.requires_grad());
}

TEST_CASE("vectors: a norm with channels last has gradients where its input has none",
          "[vectors]") {
  auto net = make_net(torch::kFloat), plain = make_net(torch::kFloat);
  const auto lora = patch<ClassicLoRA>(*net, 2, Targets().vectors({Targets::norms()}));
  const Tensor x = torch::randn({2, 6, 4, 4}), dy = torch::randn({2, 6, 4, 4});
  const std::vector<Tensor> own{plain->group->weight, plain->group->bias};
  const auto wanted = torch::autograd::grad({plain->group(x)}, own, {dy});
  std::vector<Tensor> values(2);
  for (const auto& adapter : lora->adapters()) {
    const auto& name = adapter->layer().name;
    if (name == "group.weight") values[0] = adapter->trained()["diff"];
    if (name == "group.bias") values[1] = adapter->trained()["diff"];
  }
  const auto active = lora->activate();
  for (const auto format : {at::MemoryFormat::ChannelsLast, at::MemoryFormat::Contiguous}) {
    const Tensor y = net->group(x.contiguous(format));
    const auto found = torch::autograd::grad({y}, values, {dy.contiguous(format)});
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(close(found[i].flatten(), wanted[i].flatten(), 1e-5));
    }
  }
}

TEST_CASE("vectors: beside adapters of the same layers, merged, and at another weight",
          "[vectors]") {
  auto net = make_net();
  const Tensor x = input(), before = net(x);
  for (const char* variant : {"classic", "lokr", "hira", "oft"}) {
    INFO(variant);
    const auto lora = patch(*net, variant, LoRAOptions(2), everything());
    randomise(lora);
    // LibTorch multiplies otherwise where weights take no gradient.
    const Tensor frozen = net(x), adapted = lora(net, x).detach();
    CHECK(relative_error(adapted, before) > 1e-2);
    lora->merge();
    CHECK(close(net(x), adapted, 1e-12));
    lora->unmerge();
    CHECK(torch::equal(net(x), frozen));
    lora->set_active({{"default", 0.0}});
    CHECK(close(lora(net, x), before, 1e-12));
    lora->remove();
  }
}

TEST_CASE("vectors: half precision stays near the exact result", "[vectors]") {
  auto net = make_net(torch::kFloat);
  const auto lora = patch<ClassicLoRA>(*net, 2, everything());
  randomise(lora);
  const torch::NoGradGuard no_grad;
  const Tensor exact = lora(net, input(torch::kFloat));
  net->to(torch::kBFloat16);
  const Tensor half = lora(net, input(torch::kBFloat16));
  CHECK(half.scalar_type() == torch::kBFloat16);
  CHECK(close(half, exact, 5e-2));  // eight bits, a few roundings in a row
}

TEST_CASE("vectors: files hold them, and those of diffusers and PEFT are written without them",
          "[vectors]") {
  const ScratchFolder folder;
  auto net = make_net(torch::kFloat);
  const auto lora = patch<ClassicLoRA>(*net, 2, everything());
  randomise(lora);
  const Tensor x = input(torch::kFloat), adapted = lora(net, x).detach();
  save(lora, folder.file("native"));
  auto fresh = make_net(torch::kFloat);
  const auto again = patch(*fresh, read_state(folder.file("native")));
  CHECK(torch::equal(again(fresh, x), adapted));
  CHECK_THROWS_WITH(save(lora, folder.file("peft"), Format::peft),
                    ContainsSubstring("expected a layer that PEFT can adapt, got"));
  const auto rest = without_vectors({{"", lora->state()}});
  CHECK(rest.at("").size() == 3);
  save(rest, folder.file("peft"), Format::peft);
  CHECK(read_state(folder.file("peft")).size() == 3);
}

TEST_CASE("vectors: names, and what cannot be", "[vectors]") {
  auto net = make_net();
  const auto paths = [&](const Targets& targets) {
    const auto lora = patch<ClassicLoRA>(*net, 2, targets);
    std::vector<std::string> result;
    for (const auto& adapter : lora->adapters()) result.push_back(adapter->layer().name);
    return result;
  };
  using Paths = std::vector<std::string>;
  CHECK(paths(Targets::all()) == Paths{"conv", "proj", "plain"});
  CHECK(paths(Targets().vectors({"bias"}).exclude("conv.bias")) ==
        Paths{"group.bias", "proj.bias", "norm.bias"});
  CHECK(paths(Targets{"plain"}.vectors({"norm.weight"})) == Paths{"norm.weight", "plain"});
  CHECK_THROWS_WITH(paths(Targets{"norm.weight"}), ContainsSubstring("target 'norm.weight'"));
  CHECK_THROWS_WITH(paths(Targets().vectors({"plain.bias"})),
                    ContainsSubstring("expected at least one norm or bias of that name among 6"));
  CHECK_THROWS_WITH(paths(Targets().vectors({"norm"})),
                    ContainsSubstring("expected a norm or bias, got a module that holds some"));
  const auto lora = patch<ClassicLoRA>(*net, 2, everything());
  CHECK_THROWS_WITH(lora->activate_rows({"default"}, torch::zeros({2}, torch::kLong)),
                    ContainsSubstring("cannot be combined with Bias"));
}
