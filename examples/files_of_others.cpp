// SPDX-License-Identifier: Apache-2.0
// Writes one adapter as diffusers, PEFT, kohya's sd-scripts and this library would, reads each file
// back without being told which it is, and compares what the model computes. Prints:
//
//   native      2 layers, classic, same output: yes
//   diffusers   2 layers, classic, same output: yes
//   peft        2 layers, classic, same output: yes
//   kohya       2 layers, classic, same output: yes
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>

// The layers have the names of Stable Diffusion's UNet: kohya's files know no other models.
struct UNetImpl : torch::nn::Module {
  UNetImpl() {
    torch::nn::Sequential time({{"linear_1", torch::nn::Linear(32, 48)},
                                {"act", torch::nn::SiLU()},
                                {"linear_2", torch::nn::Linear(48, 48)}});
    time_embedding = register_module("time_embedding", time);
  }
  torch::Tensor forward(const torch::Tensor& x) { return time_embedding->forward(x); }
  torch::nn::Sequential time_embedding{nullptr};
};
TORCH_MODULE(UNet);

int main() {
  torch::manual_seed(0);
  UNet model;
  const auto x = torch::randn({5, 32});
  auto lora = lightlora::patch<lightlora::ClassicLoRA>(
      *model, lightlora::LoRAOptions(/*rank=*/4).network_alpha(2), {"linear_1", "linear_2"});
  for (auto& parameter : lora->parameters()) parameter.data().normal_(0, 0.3);  // as if trained
  const auto expected = lora(model, x);

  // A file has adapters for one or more components of a pipeline; these are for its UNet.
  const lightlora::Components adapters{{"unet", lora->state()}};
  using lightlora::Format;
  lightlora::save(adapters, "native.safetensors");
  lightlora::save(adapters, "diffusers.safetensors", Format::diffusers);
  lightlora::save(adapters, "peft",
                  Format::peft);  // a folder, with a sub-folder for each component
  lightlora::save(adapters, "kohya.safetensors", Format::kohya);
  lora->remove();

  for (const std::string name : {"native", "diffusers", "peft", "kohya"}) {
    const auto path = name == "peft" ? name + "/unet" : name + ".safetensors";
    const auto layers = lightlora::read_state(path);
    auto again = lightlora::patch(*model, layers);
    const bool same = torch::allclose(again(model, x), expected, /*rtol=*/1e-4, /*atol=*/1e-4);
    std::printf("%-11s %zu layers, %s, same output: %s\n", name.c_str(), layers.size(),
                layers.front().variant.c_str(), same ? "yes" : "no");
    again->remove();
  }
  return 0;
}
