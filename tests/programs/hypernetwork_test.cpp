// SPDX-License-Identifier: Apache-2.0
// The parts of HyperDreamBooth on the bundled model: network, per-row losses, targets.
#include "research/hypernetwork/network.h"

#include <ATen/ATen.h>
#include <lightlora/combine.h>
#include <torch/utils.h>

#include "research/hypernetwork/targets.h"
#include "support.h"
#include "training/adapters.h"

namespace {

using namespace hypernetwork;

HyperNetworkOptions small_sizes() {
  return HyperNetworkOptions().channels(3).side(8).grid(4).width(16).heads(2).layers(
      {{"a", 5}, {"b", 3}, {"c", 7}});
}

// Adapters of two layers of the bundled UNet, and pictures that are noise.
struct Small {
  sd::StableDiffusion pipeline{std::string(LIGHTLORA_SOURCE_DIR) +
                               "/examples/stable_diffusion/assets/base"};
  sd::PipelineAdapters adapters;
  std::unique_ptr<SubjectLoss> loss;
  Identities data;

  explicit Small(const std::string& variant = "light") {
    torch::manual_seed(1);
    training::AdapterOptions options;
    options.variant = variant;
    options.lora.rank(1);
    options.target_modules = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
                              "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"};
    adapters = training::add_adapters(options, *pipeline.unet(), {}, /*seed=*/0);
    loss =
        std::make_unique<SubjectLoss>(pipeline.unet(), adapters.unet, pipeline.scheduler_config());
    data.names = {"one", "two", "three"};
    data.first = {0, 2, 4, 6};
    const auto& unet = pipeline.unet()->options;
    data.latents = at::randn({6, unet.in_channels(), unet.sample_size()[0], unet.sample_size()[0]});
    data.caption = at::zeros({6}, at::kLong);
    data.states = pipeline.encode_prompt({"a sks bear"}).states;
    data.fingerprint = "small";
  }
};

double largest(const at::Tensor& difference) { return difference.abs().max().item<double>(); }

}  // namespace

TEST_CASE("a hypernetwork starts at the mean and predicts for layers of any size") {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  HyperNetwork network(small_sizes());
  const auto mean = at::randn({15}), spread = at::rand({15}) + 0.5;
  network->set_scale(mean, spread);
  const auto latents = at::randn({4, 3, 8, 8});
  const auto first = network->forward(latents);
  REQUIRE(first.sizes() == at::IntArrayRef({4, 15}));
  CHECK(largest(first - mean) < 0.05);
  CHECK(largest(first - mean) > 0);
  // A picture's prediction does not depend on the others'.
  CHECK(largest(network->forward(latents.narrow(0, 2, 1))[0] - first[2]) < 1e-6);
  // Each refinement adds something.
  CHECK(largest(network->forward(latents, 0) - mean) == 0);
  CHECK(largest(network->forward(latents, 1) - first) > 0);
  CHECK(largest(network->forward(latents, 2) - first) == 0);
}

TEST_CASE("a hypernetwork comes back from its file, and damaged files are named") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder folder;
  const auto path = folder.file("network.safetensors");
  HyperNetwork network(small_sizes());
  network->set_scale(at::randn({15}), at::rand({15}) + 0.5);
  HyperNetworkFile file{network->options, {}, {{"instance_prompt", "a sks dog"}}};
  for (const auto& item : network->named_parameters()) file.tensors[item.key()] = item.value();
  for (const auto& item : network->named_buffers()) file.tensors[item.key()] = item.value();
  save_network(file, path, at::kFloat);
  const auto read = read_network(path);
  CHECK(read.metadata == file.metadata);
  CHECK((read.options.layers() == file.options.layers()));
  const auto latents = at::randn({2, 3, 8, 8});
  CHECK(largest(make_network(read, path)->forward(latents) - network->forward(latents)) == 0);

  auto damaged = read;
  damaged.tensors.erase("in.weight");
  CHECK_THROWS_WITH(make_network(damaged, path),
                    ContainsSubstring("expected 'in.weight' of shape"));
  lightlora::save_safetensors(path, {{"x", at::zeros({1})}});
  CHECK_THROWS_WITH(read_network(path), ContainsSubstring("expected a hypernetwork"));
  lightlora::save_safetensors(path, {{"x", at::zeros({1})}}, {{"hypernetwork", "{}"}});
  CHECK_THROWS_WITH(read_network(path), ContainsSubstring("expected the sizes of a hypernetwork"));
}

TEST_CASE("rows of a batch have the losses that they have alone") {
  const torch::NoGradGuard no_grad;
  Small small;
  const int64_t n = small.adapters.unet->values().numel();
  const auto values = at::randn({3, n});
  const auto batch = small.loss->draw(small.data, {0, 1, 2}, /*each=*/2);
  const auto together = (*small.loss)(values, batch);
  for (int64_t i = 0; i < 3; ++i) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(0, 2 * i, 2); };
    small.adapters.unet->assign(values[i]);
    const auto active = small.adapters.unet->activate();
    const SubjectBatch alone{part(batch.latents), part(batch.states), part(batch.noise),
                             part(batch.timesteps)};
    // The base alone, with the adapters of row i active around it.
    const auto expected = (*small.loss)({}, alone).mean();
    CHECK(largest(together[i] - expected) < 1e-6);
  }
  CHECK(largest((*small.loss)({}, batch).view({3, 2}).mean(1) - together) > 0);
}

TEST_CASE("targets lower the loss of their identity, are canonical, and are found again") {
  const ScratchFolder scratch;
  const auto folder = scratch.file("targets");
  Small small;
  const auto start = small.adapters.unet->values().detach().clone();
  TargetOptions options;
  options.steps = 12;
  options.at_once = 2;
  options.learning_rate = 0.02;
  const auto targets = train_targets(*small.loss, small.data, start, options, folder, {});
  REQUIRE(targets.sizes() == at::IntArrayRef({3, start.numel()}));
  const torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  const auto batch = small.loss->draw(small.data, {0, 1, 2}, /*each=*/8);
  const auto before = (*small.loss)(start.repeat({3, 1}), batch);
  const auto after = (*small.loss)(targets, batch);
  CHECK((after < before).all().item<bool>());
  for (const auto& row : targets.unbind(0)) {
    CHECK(largest(canonical_values(small.adapters.unet, row) - row) < 1e-5);
  }
  CHECK(largest(small.adapters.unet->values() - start) == 0);
  // Pieces that are there are not made again: with another answer in one, that is the answer.
  const auto path = folder + "/targets-1.safetensors";
  const lightlora::SafetensorsFile piece(path);
  lightlora::save_safetensors(path, {{"values", at::ones({1, start.numel()})}}, piece.metadata());
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) == 0);
  options.steps = 1;
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) > 0);
}

TEST_CASE("equal adapters have equal canonical values") {
  Small small;
  const torch::NoGradGuard no_grad;
  const auto& lora = small.adapters.unet;
  lora->assign(at::randn_like(lora->values()));
  const auto values = lora->values().clone();
  for (const auto& item : lora->named_parameters()) {
    at::Tensor value = item.value();
    value.mul_(item.key().find("down") != std::string::npos ? -4.0 : -0.25);
  }
  const auto other = lora->values().clone();
  CHECK(largest(other - values) > 0.1);
  CHECK(largest(canonical_values(lora, other) - canonical_values(lora, values)) < 1e-5);

  // Fused, whose core is unique, stays as it is.
  Small fused("fused");
  const auto core = at::randn_like(fused.adapters.unet->values());
  CHECK(largest(canonical_values(fused.adapters.unet, core) - core) == 0);
}
