// SPDX-License-Identifier: Apache-2.0
// Many threads in one model at the same time, under ThreadSanitizer: each has its own adapters and
// weights or none, one trains, the cached sums and factors are made and dropped beneath them. Says
// so and returns 1 if a thread computed anything but what it computes alone.
#include <lightlora/lightlora.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <atomic>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace {

using Weights = std::map<std::string, double>;

struct Shared {
  torch::nn::Sequential model{torch::nn::Linear(24, 32), torch::nn::Linear(32, 16)};
  lightlora::ClassicLoRA<torch::nn::Linear> layer{torch::nn::Linear(24, 16)};
  torch::Tensor x = torch::randn({6, 24});
  lightlora::Patched lora;
  lightlora::PackedWeights packed;

  Shared() {
    model->eval();
    lora = lightlora::patch<lightlora::ClassicLoRA>(*model, 3, lightlora::Targets::all(), "a");
    lora->add("b", "light", lightlora::LightOptions(2).aux_in(12).aux_out(8),
              lightlora::Targets::all());
    lora->add("trains", "classic", lightlora::LoRAOptions(2), lightlora::Targets::all());
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.3);
    packed = lightlora::pack_weights(*model);
  }

  torch::Tensor alone(const Weights* weights) {
    const torch::NoGradGuard no_grad;
    if (!weights) return model->forward(x);
    const auto on = lora->activate(*weights);
    return model->forward(x);
  }
};

// What a thread that infers does over and over; counts the results that differ.
void infer(Shared& shared, const Weights* weights, const torch::Tensor& expected, bool packs,
           std::atomic<int>& wrong) {
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 40; ++i) {
    const auto packing = packs ? shared.packed.activate() : lightlora::Packing();
    const torch::Tensor y = shared.alone(weights);
    if (!torch::allclose(y, expected, 1e-4, 1e-5)) ++wrong;
  }
}

// One layer and its adapter as a module.
void infer_layer(Shared& shared, const torch::Tensor& expected, std::atomic<int>& wrong) {
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 40; ++i) {
    if (!torch::allclose(shared.layer->forward(shared.x), expected, 1e-4, 1e-5)) ++wrong;
  }
}

void infer_rows(Shared& shared, const torch::Tensor& expected, std::atomic<int>& wrong) {
  const torch::NoGradGuard no_grad;
  for (int i = 0; i < 40; ++i) {
    const auto on = shared.lora->activate_rows({"a", "b"}, torch::tensor({0, 0, 0, 1, 1, -1}));
    if (!torch::allclose(shared.model->forward(shared.x), expected, 1e-4, 1e-5)) ++wrong;
  }
}

// Only its own set changes.
void train(Shared& shared, std::atomic<int>& wrong) {
  torch::optim::SGD optimizer(shared.lora->named_parameters("trains").values(), 1e-3);
  double first = 0, last = 0;
  for (int i = 0; i < 40; ++i) {
    const auto on = shared.lora->activate({{"trains", 1.0}});
    optimizer.zero_grad();
    const torch::Tensor loss = shared.model->forward(shared.x).square().mean();
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (i == 0) first = last;
  }
  if (!(last < first)) ++wrong;
}

// What is left out by name is LibTorch's own code, not every function that takes its types.
[[gnu::noinline]] void count(int& value, const torch::Tensor& step) {
  value += static_cast<int>(step.dim()) + 1;
}

// A race on purpose: ThreadSanitizer must see it, or it sees nothing here.
int race() {
  int value = 0;
  const torch::Tensor step = torch::zeros({});
  std::thread other([&] { count(value, step); });
  count(value, step);
  other.join();
  return value == 2 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--race") return race();
  torch::manual_seed(0);
  at::set_num_threads(1);
  Shared shared;
  const Weights a{{"a", 1.0}}, b{{"b", 0.5}}, both{{"a", 1.0}, {"b", -1.0}};
  const torch::Tensor base = shared.alone(nullptr), with_a = shared.alone(&a),
                      with_b = shared.alone(&b), with_both = shared.alone(&both);
  const torch::Tensor full_b = [&] {
    const Weights one{{"b", 1.0}};
    return shared.alone(&one);
  }();
  const torch::Tensor rows =
      torch::cat({with_a.narrow(0, 0, 3), full_b.narrow(0, 3, 2), base.narrow(0, 5, 1)});
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] { infer(shared, &a, with_a, false, wrong); });
  threads.emplace_back([&] { infer(shared, &a, with_a, true, wrong); });
  threads.emplace_back([&] { infer(shared, &b, with_b, false, wrong); });
  threads.emplace_back([&] { infer(shared, &both, with_both, true, wrong); });
  threads.emplace_back([&] { infer(shared, nullptr, base, false, wrong); });
  threads.emplace_back([&] { infer_rows(shared, rows, wrong); });
  const torch::Tensor of_layer = shared.layer->base->forward(shared.x).detach();  // up is zero yet
  for (int i = 0; i < 2; ++i) threads.emplace_back([&] { infer_layer(shared, of_layer, wrong); });
  threads.emplace_back([&] { train(shared, wrong); });
  for (auto& thread : threads) thread.join();
  std::printf("%d wrong results of 321\n", wrong.load());
  return wrong.load() == 0 ? 0 : 1;
}
