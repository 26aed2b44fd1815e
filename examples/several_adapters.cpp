// SPDX-License-Identifier: Apache-2.0
// Two adapter sets on one model: each is trained for its own task while the other rests, then both
// work at once with a weight each, and the mixture is merged into the model. Prints:
//
//   subject learned its task: yes
//   style learned its task: yes
//   both at once give the weighted sum: yes
//   merged equals adapted: yes, unmerged equals the base: yes
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>

const char* yes(bool answer) { return answer ? "yes" : "no"; }

// Trains one set for y = x * factor while the other rests.
void train(const lightlora::Patched& lora, torch::nn::Linear& model, const std::string& name,
           const torch::Tensor& x, double factor) {
  lora->set_active({{name, 1.0}});
  torch::optim::AdamW optimizer(lora->named_parameters(name).values(), /*lr=*/3e-2);
  const double start = torch::mse_loss(lora(model, x), x * factor).item<double>();
  torch::Tensor loss;
  for (int step = 0; step < 150; ++step) {
    optimizer.zero_grad();
    loss = torch::mse_loss(lora(model, x), x * factor);
    loss.backward();
    optimizer.step();
  }
  std::printf("%s learned its task: %s\n", name.c_str(), yes(loss.item<double>() < 0.5 * start));
}

int main() {
  torch::manual_seed(0);
  torch::nn::Linear model(16, 16);
  const auto all = lightlora::Targets::all_linear();
  const auto x = torch::randn({64, 16}), base = model(x);

  auto lora = lightlora::patch<lightlora::ClassicLoRA>(*model, /*rank=*/8, all, "subject");
  lora->add("style", "light", /*rank=*/8, all);
  train(lora, model, "subject", x, 1.0);
  train(lora, model, "style", x, -1.0);

  lora->set_active({{"subject", 1.0}});
  const auto subject = lora(model, x) - base;
  lora->set_active({{"style", 1.0}});
  const auto style = lora(model, x) - base;
  lora->set_active({{"subject", 0.8}, {"style", 0.5}});
  const auto both = lora(model, x);
  const auto sum = base + 0.8 * subject + 0.5 * style;
  std::printf("both at once give the weighted sum: %s\n",
              yes(torch::allclose(both, sum, 1e-4, 1e-4)));

  lora->merge();
  const bool merged = torch::allclose(model(x), both, 1e-4, 1e-4);
  lora->unmerge();
  std::printf("merged equals adapted: %s, unmerged equals the base: %s\n", yes(merged),
              yes(torch::equal(model(x), base)));
  return 0;
}
