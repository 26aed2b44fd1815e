// SPDX-License-Identifier: Apache-2.0
// Adapts a small model that knows nothing of lightlora, trains it, saves it, loads it, merges it.
// Prints what trains, that the loss fell, and that the merged model equals the adapted one:
//
//   trainable 2,112 of 74,208 (2.85%) in 2 layers
//   loss fell: yes
//   first_adapter.safetensors loads, merged equals adapted: yes
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <iostream>

struct MlpImpl : torch::nn::Module {
  MlpImpl() {
    fc1 = register_module("fc1", torch::nn::Linear(64, 256));
    fc2 = register_module("fc2", torch::nn::Linear(256, 224));
  }
  torch::Tensor forward(torch::Tensor x) { return fc2->forward(torch::relu(fc1->forward(x))); }
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
};
TORCH_MODULE(Mlp);

int main() {
  torch::manual_seed(0);
  Mlp model;
  const auto x = torch::randn({128, 64});
  const auto target = torch::randn({128, 224}).mul(0.1);

  // The three lines: adapt, call, save.
  auto lora = lightlora::patch<lightlora::LightLoRA>(*model, /*rank=*/8, {"fc1", "fc2"});
  const auto start = torch::mse_loss(lora(model, x), target);
  std::cout << lora->report().to_string() << "\n";

  torch::optim::AdamW optimizer(lora->parameters(), torch::optim::AdamWOptions(5e-2));
  torch::Tensor loss;
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    loss = torch::mse_loss(lora(model, x), target);
    loss.backward();
    optimizer.step();
  }
  std::cout << "loss fell: " << (loss.item<float>() < 0.9 * start.item<float>() ? "yes" : "no")
            << "\n";

  const auto adapted = lora(model, x);
  lightlora::save(lora, "first_adapter.safetensors");
  lora->remove();

  auto again = lightlora::patch(*model, lightlora::read_state("first_adapter.safetensors"));
  again->merge();
  const bool equal = torch::allclose(model(x), adapted, /*rtol=*/1e-4, /*atol=*/1e-5);
  std::cout << "first_adapter.safetensors loads, merged equals adapted: " << (equal ? "yes" : "no")
            << "\n";
  return equal ? 0 : 1;
}
