// SPDX-License-Identifier: Apache-2.0
// TorchScript modules, as torch.jit.load gives them, are adapted like modules of the C++ frontend.
#include <lightlora/lightlora.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <map>

#include "paths.h"
#include "support.h"

using namespace lightlora;
using torch::Tensor;
using Inputs = std::vector<torch::jit::IValue>;

namespace {

torch::jit::Module script_linear(int64_t in, int64_t out) {
  torch::jit::Module layer("__torch__.torch.nn.modules.linear.Linear");
  layer.register_parameter("weight", torch::randn({out, in}) / 3, /*is_buffer=*/false);
  layer.register_parameter("bias", torch::randn({out}), /*is_buffer=*/false);
  layer.define("def forward(self, x):\n  return torch.linear(x, self.weight, self.bias)\n");
  return layer;
}

torch::jit::Module script_model() {
  torch::manual_seed(1);
  torch::jit::Module model("Net");
  model.register_module("first", script_linear(8, 12));
  model.register_module("second", script_linear(12, 5));
  model.define(
      "def forward(self, x):\n  return self.second.forward(torch.tanh(self.first.forward(x)))\n");
  return model;
}

torch::jit::Module script_module(const std::string& type,
                                 const std::map<std::string, Tensor>& parameters) {
  torch::jit::Module layer("__torch__.torch.nn.modules." + type);
  for (const auto& [name, value] : parameters) {
    layer.register_parameter(name, value / 3, /*is_buffer=*/false);
  }
  return layer;
}

// A convolution, a recurrent layer and attention with the operators that PyTorch's modules call.
torch::jit::Module script_layers() {
  torch::manual_seed(2);
  auto conv = script_module("conv.Conv1d", {{"weight", torch::randn({8, 8, 3})}});
  conv.define(
      "def forward(self, x):\n"
      "  return torch.conv1d(x, self.weight, None, [1], [1], [1], 1)\n");
  auto lstm = script_module("rnn.LSTM", {{"weight_ih_l0", torch::randn({24, 8})},
                                         {"weight_hh_l0", torch::randn({24, 6})}});
  lstm.define(
      "def forward(self, x):\n"
      "  h = torch.zeros([1, x.size(1), 6])\n"
      "  return torch.lstm(x, [h, h], [self.weight_ih_l0, self.weight_hh_l0], False, 1, 0.0, False,"
      " False, False)[0]\n");
  auto out = script_module("linear.NonDynamicallyQuantizableLinear",
                           {{"weight", torch::randn({6, 6})}, {"bias", torch::randn({6})}});
  auto attention =
      script_module("activation.MultiheadAttention", {{"in_proj_weight", torch::randn({18, 6})}});
  attention.register_module("out_proj", out);
  attention.define(
      "def forward(self, x):\n"
      "  q, k, v = torch.linear(x, self.in_proj_weight).chunk(3, -1)\n"
      "  mixed = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)\n"
      "  return torch.linear(mixed, self.out_proj.weight, self.out_proj.bias)\n");
  torch::jit::Module model("Layers");
  model.register_module("conv", conv);
  model.register_module("lstm", lstm);
  model.register_module("attention", attention);
  model.define(
      "def forward(self, x):\n"
      "  x = self.conv.forward(x.transpose(1, 2)).transpose(1, 2)\n"
      "  return self.attention.forward(self.lstm.forward(x))\n");
  return model;
}

void randomise(const Patched& lora, const std::string& name = "default") {
  torch::NoGradGuard no_grad;
  for (auto& item : lora->named_parameters(name)) item.value().normal_(0, 0.5);
}

}  // namespace

TEST_CASE("a TorchScript module is adapted, merged, unmerged and left as it was", "[torchscript]") {
  auto model = script_model();
  const Tensor x = torch::randn({4, 8});
  const Tensor base = model.forward({x}).toTensor();
  const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2).network_alpha(3), Targets::all());
  std::vector<std::string> paths;
  for (const auto& adapter : lora->adapters()) paths.push_back(adapter->layer().name);
  CHECK(paths == std::vector<std::string>{"first", "second"});
  randomise(lora);
  for (const bool gradients : {true, false}) {
    const torch::AutoGradMode mode(gradients);
    // The executor profiles in its first calls and optimises afterwards.
    for (int call = 0; call < 4; ++call) {
      const Tensor adapted = lora(model, Inputs{x}).toTensor().detach();
      CHECK_FALSE(close(adapted, base, 1e-3));
      lora->merge();
      CHECK(close(model.forward({x}).toTensor(), adapted, 1e-5));
      lora->unmerge();
      CHECK(close(model.forward({x}).toTensor(), base, 1e-6));
    }
  }
}

TEST_CASE("a TorchScript module trains in every call, and learns", "[torchscript]") {
  auto model = script_model();
  const Tensor x = torch::randn({16, 8}), target = torch::randn({16, 5});
  const auto lora = patch(model, "light", LightOptions(2).aux_in(8).aux_out(5), Targets::all());
  torch::optim::AdamW optimizer(lora->parameters(), torch::optim::AdamWOptions(1e-2));
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    const Tensor loss = torch::mse_loss(lora(model, Inputs{x}).toTensor(), target);
    loss.backward();
    if (step > 0) {
      for (const auto& parameter : lora->parameters()) {
        CHECK(parameter.grad().norm().item<double>() > 0);
      }
    }
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  CHECK(last < 0.9 * first);
  for (const auto& parameter : model.parameters()) CHECK_FALSE(parameter.grad().defined());
}

TEST_CASE("a state of a TorchScript module's adapters fits another copy of it", "[torchscript]") {
  auto model = script_model(), twin = script_model();
  const Tensor x = torch::randn({4, 8});
  const auto lora = patch<ClassicLoRA>(model, 2, {"second"});
  lora->add("more", "classic", LoRAOptions(3), Targets::all());
  randomise(lora);
  randomise(lora, "more");
  const auto same = patch(twin, lora->state(), "default");
  same->add("more", lora->state("more"));
  lora->set_active({{"default", 0.5}, {"more", 2}});
  same->set_active({{"default", 0.5}, {"more", 2}});
  CHECK(torch::equal(same(twin, Inputs{x}).toTensor(), lora(model, Inputs{x}).toTensor()));
}

TEST_CASE("adapters of a TorchScript module come back from PEFT's folder", "[torchscript]") {
  const ScratchFolder folder;
  auto model = script_model(), twin = script_model();
  const Tensor x = torch::randn({4, 8}), base = model.forward({x}).toTensor();
  const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2).network_alpha(3), Targets::all());
  randomise(lora);
  const auto path = folder.file("adapter");
  save(lora, path, Format::peft);
  const auto same = patch(twin, read_state(path));
  const Tensor adapted = lora(model, Inputs{x}).toTensor();
  CHECK_FALSE(close(adapted, base, 1e-3));
  CHECK(close(same(twin, Inputs{x}).toTensor(), adapted, 1e-5));
}

TEST_CASE("layers of every operator in a TorchScript module are adapted as they merge",
          "[torchscript]") {
  auto model = script_layers();
  const Tensor x = torch::randn({3, 2, 8});
  const auto run = [&] { return model.forward({x}).toTensor().detach(); };
  const Tensor base = run();
  for (const char* target : {"conv", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "attention.in_proj",
                             "attention.out_proj"}) {
    INFO(target);
    const auto lora = patch<ClassicLoRA>(model, 2, {target});
    randomise(lora);
    for (int call = 0; call < 3; ++call) {  // the executor optimises after the first
      const Tensor adapted = lora(model, Inputs{x}).toTensor();
      CHECK_FALSE(close(adapted.detach(), base, 1e-3));
      for (const auto& gradient :
           torch::autograd::grad({adapted.square().sum()}, lora->parameters())) {
        CHECK(gradient.norm().item<double>() > 0);
      }
      lora->merge();
      CHECK(close(run(), adapted.detach(), 1e-5));
      lora->unmerge();
      CHECK(close(run(), base, 1e-6));
    }
  }
}

TEST_CASE("a frozen TorchScript module is refused with what to do", "[torchscript]") {
  auto model = script_model();
  model.eval();
  auto frozen = torch::jit::freeze(model);
  CHECK_THROWS_WITH(patch<ClassicLoRA>(frozen, 2, Targets::all()),
                    ContainsSubstring("export it without torch.jit.freeze"));
}

TEST_CASE("exports give what PEFT gives with the Python model, row by row too",
          "[torchscript][parity]") {
  const std::string data = LIGHTLORA_TEST_DATA "/torchscript/";
  const auto expected = SafetensorsFile(data + "expected.safetensors").load_all();
  const Tensor ids = expected.at("ids");
  const torch::NoGradGuard no_grad;
  for (const char* file : {"scripted.pt", "traced.pt"}) {
    INFO(file);
    auto model = torch::jit::load(data + file);
    const auto run = [&] { return model.forward({ids}).toTensor(); };
    CHECK(close(run(), expected.at("base"), 1e-6));
    const auto state = [&](const char* name) {
      const auto components = read_adapters(data + name).components;
      return components.begin()->second;
    };
    const auto lora = patch(model, state("one"), "one");
    lora->add("two", state("two"));
    for (int call = 0; call < 3; ++call) {  // the executor optimises after the first
      for (const char* name : {"one", "two"}) {
        INFO(name);
        const auto on = lora->activate({{name, 1}});
        CHECK(close(run(), expected.at(name), 1e-5));
      }
      const auto on = lora->activate_rows({"one", "two"}, torch::tensor({0, 1, -1}, torch::kLong));
      CHECK(close(run(), expected.at("mixed"), 1e-5));
    }
    CHECK(lora->unreached().empty());
    CHECK(close(run(), expected.at("base"), 1e-6));
  }
}
