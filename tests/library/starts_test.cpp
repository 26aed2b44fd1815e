// SPDX-License-Identifier: Apache-2.0
// ClassicLoRA's starts, and what changes its gradients, equal PEFT's on the numbers of
// parity/make_starts.py. PEFT computes in fp32; here the model is fp32 too.
#include <lightlora/lightlora.h>

#include "models.h"
#include "paths.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

constexpr double kPeft = 1e-5;

TensorMap& numbers() {
  static TensorMap all = SafetensorsFile(LIGHTLORA_TEST_DATA "/starts.safetensors").load_all();
  return all;
}

Tensor number(const std::string& name) { return numbers().at(name); }

torch::nn::Sequential base_model() {
  torch::nn::Sequential model(torch::nn::Linear(24, 20), torch::nn::Tanh(),
                              torch::nn::Linear(20, 16));
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) item.value().copy_(number("base." + item.key()));
  return model;
}

Tensor loss_of(torch::nn::Sequential& model) {
  return torch::mse_loss(model->forward(number("x")), number("target"));
}

// Of the step that the numbers are taken after.
double rate_of(LoRAStart start) { return start == LoRAStart::corda ? 0.003 : 0.3; }

struct StartCase {
  const char* name;
  LoRAStart start;
  StartOptions options = {};
  int64_t niter = 0;
};

const std::vector<StartCase>& start_cases() {
  static const std::vector<StartCase> all{
      {"pissa", LoRAStart::pissa},
      {"pissa_niter_16", LoRAStart::pissa, {}, 16},
      {"olora", LoRAStart::olora},
      {"mica", LoRAStart::mica},
      {"eva", LoRAStart::eva, StartOptions().rho(1)},
      {"eva_ranks", LoRAStart::eva, StartOptions().rho(3.34)},
      {"corda", LoRAStart::corda},
      {"corda_kpm", LoRAStart::corda, StartOptions().corda_method(CordaMethod::kpm)},
      {"lora_ga", LoRAStart::lora_ga}};
  return all;
}

Patched started(torch::nn::Sequential& model, const StartCase& start) {
  const auto lora = patch<ClassicLoRA>(
      *model, ClassicOptions(3).network_alpha(6).init_lora_weights(start.start).niter(start.niter),
      {"0", "2"});
  const auto run = [&] {
    start.start == LoRAStart::lora_ga ? loss_of(model).backward()
                                      : void(model->forward(number("x")));
  };
  const bool from_data = start.start == LoRAStart::eva || start.start == LoRAStart::corda ||
                         start.start == LoRAStart::lora_ga;
  if (from_data) start_from_data(lora, run, start.options);
  return lora;
}

void take_step(
    torch::nn::Sequential& model, const Patched& lora, torch::optim::Optimizer& optimizer,
    const std::function<void()>& between = [] {}) {
  optimizer.zero_grad();
  torch::mse_loss(lora(model, number("x")), number("target")).backward();
  between();
  optimizer.step();
}

}  // namespace

TEST_CASE("starts: outputs and deltas after a step are PEFT's, and the base stays as it is",
          "[starts][parity]") {
  for (const auto& start : start_cases()) {
    INFO(start.name);
    const std::string name = start.name;
    auto model = base_model();
    const Tensor base = model->forward(number("x"));
    const auto lora = started(model, start);
    CHECK(torch::equal(lora(model, number("x")), base));  // no bit changes
    CHECK(close(base, number(name + ".start"), kPeft));
    torch::optim::SGD optimizer(lora->parameters(), torch::optim::SGDOptions(rate_of(start.start)));
    take_step(model, lora, optimizer);
    CHECK(close(lora(model, number("x")), number(name + ".y"), kPeft));
    CHECK(torch::equal(model->forward(number("x")), base));
    for (const auto& adapter : lora->adapters()) {
      INFO(adapter->layer().name);
      const Tensor theirs = number(name + "." + adapter->layer().name + ".delta");
      const auto delta = [](const LayerState& state) { return make_adapter(state)->delta(); };
      // The difference of two products in fp32: its error goes with the larger ones.
      const double size = std::max(0.3, theirs.norm().item<double>());
      const Tensor error = delta(to_classic(*adapter)) - theirs;
      CHECK(error.abs().max().item<double>() < kPeft * size);
    }
  }
}

TEST_CASE("starts: eva gives ranks to the directions that explain most, as many in all",
          "[starts]") {
  auto model = base_model();
  const auto lora = started(model, {"eva_ranks", LoRAStart::eva, StartOptions().rho(3.34)});
  std::vector<int64_t> ranks;
  for (const auto& adapter : lora->adapters()) {
    ranks.push_back(adapter->rank());
    CHECK(adapter->scale() == 2.0);
  }
  CHECK(ranks == std::vector<int64_t>{4, 2});
  CHECK(lora->sets() == std::vector<std::string>{"default"});
  CHECK(lora->active() == std::map<std::string, double>{{"default", 1.0}});
}

TEST_CASE("starts: a native file keeps the start exactly, others hold plain LoRA of twice the rank",
          "[starts]") {
  const ScratchFolder folder;
  for (const auto& start : start_cases()) {
    INFO(start.name);
    auto model = base_model();
    const auto lora = started(model, start);
    torch::optim::SGD optimizer(lora->parameters(), torch::optim::SGDOptions(rate_of(start.start)));
    take_step(model, lora, optimizer);
    const Tensor y = lora(model, number("x"));
    save(lora, folder.file("native"));
    save(lora, folder.file("peft"), Format::peft);
    const auto before = lora->adapters()[0];
    auto again = base_model();
    const auto native = patch(*again, read_state(folder.file("native")));
    CHECK(torch::equal(native(again, number("x")), y));
    const auto after = native->adapters()[0];
    REQUIRE(after->frozen().size() == before->frozen().size());
    for (const auto& item : before->frozen()) {
      CHECK(torch::equal(after->frozen()[item.key()], item.value()));
    }
    auto third = base_model();
    const auto exported = patch(*third, read_state(folder.file("peft")));
    CHECK(exported->adapters()[0]->rank() ==
          (before->frozen().contains("down_start") ? 6 : before->rank()));
    CHECK(close(exported(third, number("x")), y, kPeft));
  }
}

TEST_CASE("starts: svd_down lies in the weight's main directions", "[starts]") {
  auto model = base_model();
  const auto lora = started(model, {"svd_down", LoRAStart::svd_down});
  const auto vh = std::get<2>(torch::linalg_svd(number("base.0.weight"), false));
  const Tensor down = lora->adapters()[0]->trained()["down"];
  CHECK(close(down.mm(down.t()), torch::eye(3) / 3, kPeft));
  CHECK(close(down.mm(vh.slice(0, 0, 3).t()).abs().norm(), torch::ones({}), kPeft));
  CHECK(lora->adapters()[0]->trained()["up"].norm().item<double>() == 0);
}

TEST_CASE("starts: what does not fit is refused", "[starts]") {
  auto model = base_model();
  const auto fails = [&](const LoRAOptions& options, const std::string& message) {
    CHECK_THROWS_WITH(patch(*model, "classic", options, {"0"}), ContainsSubstring(message));
  };
  fails(ClassicOptions(21).init_lora_weights(LoRAStart::pissa), "expected rank <= 20");
  fails(ClassicOptions(2).init(Init::down_zero).init_lora_weights(LoRAStart::olora),
        "the init down_zero cannot be combined with init_lora_weights olora");
  fails(ClassicOptions(2).niter(4), "niter cannot be combined with init_lora_weights standard");
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(2), {"0"});
  CHECK_THROWS_WITH(start_from_data(lora, [] {}),
                    ContainsSubstring("got init_lora_weights standard"));
  lora->remove();
  const auto eva =
      patch<ClassicLoRA>(*model, ClassicOptions(2).init_lora_weights(LoRAStart::eva), {"0", "2"});
  CHECK_THROWS_WITH(start_from_data(eva, [] {}),
                    ContainsSubstring("'0': expected a call of this layer"));
  CHECK(eva->sets() == std::vector<std::string>{"default"});
}

// As anima_lora's channel scaling has it: s = mean |x|^(1/2) over its mean, the inner factor times s
// and the inputs over s.
TEST_CASE("channel scaling: the delta stays, and the first step is another one", "[starts]") {
  auto model = base_model();
  const auto options = ClassicOptions(3).network_alpha(6).channel_scaling(true);
  const auto lora = patch<ClassicLoRA>(*model, options, {"0"});
  {
    const torch::NoGradGuard no_grad;
    for (auto parameter : lora->parameters()) parameter.normal_();
  }
  const auto adapter = std::dynamic_pointer_cast<ClassicAdapterImpl>(lora->adapters()[0]);
  const Tensor before = adapter->delta().detach(), down = adapter->down.detach().clone();
  const Tensor output = lora(model, number("x")).detach();
  start_from_data(lora, [&] { model->forward(number("x")); });
  const Tensor sizes = number("x").abs().mean(0).sqrt(), unit = sizes / sizes.mean();
  CHECK(close(adapter->channels.flatten(), unit, 1e-6));
  CHECK(close(adapter->down, down * unit, 1e-6));
  CHECK(close(adapter->delta(), before, 1e-6));
  CHECK(close(lora(model, number("x")), output, 1e-5));
  torch::mse_loss(lora(model, number("x")), torch::zeros_like(output)).backward();
  auto plain_model = base_model();
  const auto plain = patch<ClassicLoRA>(*plain_model, LoRAOptions(3).network_alpha(6), {"0"});
  {
    const torch::NoGradGuard no_grad;
    plain->adapters()[0]->trained()["down"].copy_(down);
    plain->adapters()[0]->trained()["up"].copy_(adapter->up);
  }
  torch::mse_loss(plain(plain_model, number("x")), torch::zeros_like(output)).backward();
  const Tensor gradient = plain->adapters()[0]->trained()["down"].grad();
  CHECK(close(adapter->down.grad(), gradient / unit, 1e-4));
  // Files of other programs are plain LoRA, native ones keep the units.
  const auto state = lora->state();
  CHECK(close(make_adapter(to_classic(*adapter))->delta(), before, 1e-5));
  lora->remove();
  CHECK(close(patch(*model, state)(model, number("x")), output, 1e-5));
  CHECK_THROWS_WITH(
      patch<ClassicLoRA>(
          *base_model(),
          ClassicOptions(2).init_lora_weights(LoRAStart::pissa).channel_scaling(true), {"0"}),
      ContainsSubstring("channel_scaling cannot be combined with init_lora_weights pissa"));
}

TEST_CASE("training: LoRA-FA's and the Riemannian steps are PEFT's", "[starts][parity]") {
  for (const std::string name : {"lora_fa", "riemannian"}) {
    INFO(name);
    const bool frozen = name == "lora_fa";
    auto model = base_model();
    const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(3).network_alpha(6), {"0", "2"});
    const auto theirs = [&](const std::string& when, const std::string& ours) {
      const bool down = ours.find("down") != std::string::npos;
      return number(name + "." + when + "." + ours.substr(0, 2) + (down ? "lora_A" : "lora_B"));
    };
    {
      const torch::NoGradGuard no_grad;
      for (auto& item : lora->named_parameters()) item.value().copy_(theirs("before", item.key()));
    }
    if (frozen) freeze_down(lora);
    std::unique_ptr<torch::optim::Optimizer> optimizer;
    if (frozen) {
      optimizer = std::make_unique<torch::optim::AdamW>(
          lora->parameters(), torch::optim::AdamWOptions(1e-2).weight_decay(0).eps(1e-12));
    } else {
      optimizer =
          std::make_unique<torch::optim::SGD>(lora->parameters(), torch::optim::SGDOptions(1e-2));
    }
    for (int step = 0; step < 2; ++step) {
      take_step(model, lora, *optimizer, [&] {
        precondition(lora, frozen ? Preconditioner::lora_fa : Preconditioner::riemannian,
                     frozen ? 1e-8 : 1e-2);
      });
    }
    for (const auto& item : lora->named_parameters()) {
      INFO(item.key());
      CHECK(close(item.value(), theirs("after", item.key()), kPeft));
    }
  }
}
