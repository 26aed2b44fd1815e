// SPDX-License-Identifier: Apache-2.0
// Adapts a transformer whose source nobody can edit: LibTorch's own TransformerEncoder, with
// MultiheadAttention inside. Prints how many layers each target
// selected, that training works, and that the model's own weights are untouched:
//
//     self_attn.in_proj: 2 layers
//     linear1: 2 layers
//   trainable 2,304 of 25,408 (9.07%) in 4 layers
//   loss fell by more than a third: yes
//   the model's own weights are as before: yes
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <cstdio>

int main() {
  torch::manual_seed(0);
  const auto layer = torch::nn::TransformerEncoderLayerOptions(/*d_model=*/32, /*nhead=*/4)
                         .dim_feedforward(128)
                         .dropout(0);
  torch::nn::TransformerEncoder model(
      torch::nn::TransformerEncoderOptions(layer, /*num_layers=*/2));
  // On a GPU where there is one: adapters are made on their layer's device.
  const torch::Device device(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU);
  model->to(device);
  const auto before = model->layers->ptr(0)->named_parameters()["self_attn.in_proj_weight"].clone();

  // Each token shall become the normalised mean of its sequence: attention has to look around.
  const auto x = torch::randn({6, 64, 32}).to(device);  // (tokens, batch, width)
  const auto target = torch::layer_norm(x.mean(0, /*keepdim=*/true).expand_as(x), {32});

  // A name is the end of a layer's path, here of layers.0.self_attn.in_proj and so on.
  auto lora = lightlora::patch<lightlora::ClassicLoRA>(*model, /*rank=*/4,
                                                       {"self_attn.in_proj", "linear1"});
  std::printf("%s\n", lora->report().details().c_str());

  torch::optim::AdamW optimizer(lora->parameters(), torch::optim::AdamWOptions(2e-2));
  double first = 0, last = 0;
  for (int step = 0; step < 80; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(lora(model, x), target);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  std::printf("loss fell by more than a third: %s\n", last < first * 2 / 3 ? "yes" : "no");

  const auto after = model->layers->ptr(0)->named_parameters()["self_attn.in_proj_weight"];
  std::printf("the model's own weights are as before: %s\n",
              torch::equal(before, after) ? "yes" : "no");
  return 0;
}
