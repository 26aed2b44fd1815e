// SPDX-License-Identifier: Apache-2.0
// A stranger's program: adapts a model whose layers never heard of lightlora, and checks that the
// adapter takes part. Prints "consumer: ok" and returns 0, or says what went wrong and returns 1.
#include <lightlora/lightlora.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/sgd.h>

#include <cstdio>

#include "outer_adapter.h"

namespace {

// A variant that the library never heard of works by name: adapts, goes into a file, also with what
// is frozen, and comes back with its own option; a copy of its state computes the same.
bool own_variant_works(torch::nn::Sequential& model, const torch::Tensor& input) {
  lightlora::register_variant<OuterAdapterImpl>();
  const char* file = "consumer-outer.safetensors";
  torch::Tensor adapted;
  {
    auto lora = lightlora::patch(*model, "outer", OuterOptions(1).spread(2), {"0"});
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : lora->parameters()) parameter.normal_();
    }
    adapted = lora(model, input);
    lightlora::save(lora, file, lightlora::SaveOptions().bases(lightlora::Bases::embedded));
    if (!torch::equal(lightlora::read_state(file)[0].frozen.at("mask"),
                      lora->adapters()[0]->frozen()["mask"].cpu())) {
      return false;
    }
    lightlora::save(lora, file);
    const auto state = lora->state();
    lora->remove();
    auto copy = lightlora::patch(*model, state);
    if (!torch::equal(copy(model, input), adapted)) return false;
    copy->remove();
  }
  auto lora = lightlora::patch(*model, lightlora::read_state(file));
  const bool same = torch::equal(lora(model, input), adapted) &&
                    lora->adapters()[0]->options().own().at("spread") == "2";
  lora->remove();
  std::remove(file);
  return same && !torch::allclose(adapted, model->forward(input));
}

// Variants beside LoRA, each in its own way: a rotation of the inputs (OFT), a product with the weight
// (HiRA), blocks that are repeated (MiSS). Trains a step, merges, and comes back from a file.
template <template <typename> class Variant>
bool variant_works(torch::nn::Sequential& model, const torch::Tensor& input) {
  const char* file = "consumer-variant.safetensors";
  auto lora = lightlora::patch<Variant>(*model, 4, {"0", "2"});
  torch::optim::SGD optimizer(lora->parameters(), torch::optim::SGDOptions(0.02));
  const auto loss = [&] { return (lora(model, input) - 1).square().mean(); };
  const torch::Tensor before = loss();
  before.backward();
  optimizer.step();
  const torch::NoGradGuard no_grad;
  const auto adapted = lora(model, input);
  const torch::Tensor after = loss();
  const bool learns = after.item<double>() < before.item<double>();
  lora->merge();
  const bool merges = torch::allclose(model->forward(input), adapted, /*rtol=*/1e-4, /*atol=*/1e-4);
  lora->unmerge();
  lightlora::save(lora, file);
  lora->remove();
  auto again = lightlora::patch(*model, lightlora::read_state(file));
  const bool returns = torch::allclose(again(model, input), adapted, /*rtol=*/1e-5, /*atol=*/1e-5);
  again->remove();
  std::remove(file);
  return learns && merges && returns;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(128, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 32));
  const auto input = torch::randn({3, 128});
  const auto before = model->forward(input);

  auto lora = lightlora::patch<lightlora::LightLoRA>(
      *model, lightlora::LoRAOptions(/*rank=*/2).network_alpha(4), {"0", "2"});
  const bool starts_as_base = torch::equal(lora(model, input), before);
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora->parameters()) parameter.fill_(0.1);
  }
  const auto adapted = lora(model, input);
  lora->merge();
  const auto merged = model->forward(input);
  lora->unmerge();

  const bool changes = !torch::allclose(adapted, before);
  const bool merges = torch::allclose(merged, adapted, /*rtol=*/1e-4, /*atol=*/1e-4);
  const bool restores = torch::equal(model->forward(input), before);
  lora->remove();
  const bool own_variant = own_variant_works(model, input);
  const bool new_variants = variant_works<lightlora::OFT>(model, input) &&
                            variant_works<lightlora::HiRA>(model, input) &&
                            variant_works<lightlora::MiSS>(model, input);
  const bool ok = starts_as_base && changes && merges && restores && own_variant && new_variants;
  std::printf("consumer: %s (lightlora %s)\n", ok ? "ok" : "failed", LIGHTLORA_VERSION);
  return ok ? 0 : 1;
}
