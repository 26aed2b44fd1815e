// SPDX-License-Identifier: Apache-2.0
// The parts of HyperDreamBooth on the bundled model: network, per-row losses, targets.
#include "research/hypernetwork/network.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <torch/utils.h>

#include "paths.h"
#include "research/hypernetwork/identities.h"
#include "research/hypernetwork/personalize.h"
#include "research/hypernetwork/targets.h"
#include "support.h"
#include "training/adapters.h"

namespace {

using namespace hypernetwork;

constexpr const char* kBase = "/examples/stable_diffusion/assets/base";

HyperNetworkOptions small_sizes() {
  return HyperNetworkOptions().channels(3).side(8).grid(4).width(16).heads(2).layers(
      {{"a", 5}, {"b", 3}, {"c", 7}});
}

// Adapters of two layers of a UNet, and of its text encoders if asked for, and pictures that are
// noise. The sizes are the model's own.
struct Small {
  sd::StableDiffusion pipeline;
  AdapterSet adapters;
  std::unique_ptr<SubjectLoss> loss;
  Identities data;

  explicit Small(const std::string& variant = "light", const std::string& model = kBase,
                 bool text_encoder = false)
      : pipeline(std::string(LIGHTLORA_SOURCE_DIR) + model) {
    torch::manual_seed(1);
    training::AdapterOptions options;
    options.variant = variant;
    options.lora.rank(1);
    options.target_modules = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
                              "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"};
    options.text_encoder_target_modules = {"layers.0.self_attn.v_proj"};
    std::vector<torch::nn::Module*> encoders;
    for (size_t i = 0; text_encoder && i < pipeline.text_encoders(); ++i) {
      encoders.push_back(pipeline.text_encoder(i).get());
    }
    adapters = AdapterSet(training::add_adapters(options, *pipeline.unet(), encoders, /*seed=*/0));
    loss = std::make_unique<SubjectLoss>(pipeline, adapters);
    data.names = {"one", "two", "three"};
    data.first = {0, 2, 4, 6};
    const auto& unet = pipeline.unet()->options;
    data.latents = at::randn({6, unet.in_channels(), unet.sample_size()[0], unet.sample_size()[0]});
    data.caption = at::zeros({6}, at::kLong);
    data.text = pipeline.encode_prompt({"a red bear"});
    data.ids = pipeline.token_ids({"a red bear"});
    if (pipeline.is_sdxl()) data.time_ids = sd::time_ids({}, 64, 64).expand({6, 6});
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

namespace {

// Each row's loss is what its adapters have when they are put into the models' own sets.
void check_rows(Small& small) {
  const torch::NoGradGuard no_grad;
  const int64_t n = small.adapters.values().numel();
  const auto values = at::randn({3, n});
  const auto batch = small.loss->draw(small.data, {0, 1, 2}, /*each=*/2);
  const auto together = (*small.loss)(values, batch);
  const auto bare = (*small.loss)({}, batch).view({3, 2}).mean(1);
  CHECK(largest(bare - together) > 0);
  for (int64_t i = 0; i < 3; ++i) {
    const auto part = [&](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, 2 * i, 2) : all;
    };
    small.adapters.assign(values[i]);
    std::vector<lightlora::Activation> active;
    for (const auto& model : small.adapters.parts().all()) active.push_back(model->activate());
    // The base alone, with the adapters of row i active around it.
    SubjectBatch alone{part(batch.latents),
                       part(batch.noise),
                       part(batch.timesteps),
                       small.pipeline.encode_prompt({"a red bear", "a red bear"}),
                       {},
                       part(batch.time_ids)};
    CHECK(close(together[i], (*small.loss)({}, alone).mean(), 1e-5));  // another order of sums
  }
}

}  // namespace

TEST_CASE("rows of a batch have the losses that they have alone") {
  Small small;
  check_rows(small);
}

TEST_CASE("text encoders are predicted for like the UNet, of Stable Diffusion 1.x and XL") {
  for (const char* model : {kBase, "/tests/parity/data/pipeline_xl"}) {
    CAPTURE(model);
    Small small("light", model, /*text_encoder=*/true);
    const auto layers = small.adapters.layers();
    REQUIRE(layers.size() == 2 + small.pipeline.text_encoders());
    CHECK(layers[0].path.rfind("unet.mid_block", 0) == 0);
    CHECK(layers[2].path.rfind("text_encoder.text_model", 0) == 0);
    int64_t sum = 0;
    for (const auto& layer : layers) sum += layer.values;
    CHECK(small.adapters.values().numel() == sum);
    check_rows(small);
    // Gradients reach the values of every layer whose outputs the UNet reads.
    auto values = at::randn({1, sum}).requires_grad_(true);
    const auto batch = small.loss->draw(small.data, {1}, /*each=*/1);
    (*small.loss)(values, batch).sum().backward();
    int64_t start = 0;
    for (const auto& layer : layers) {
      CHECK(values.grad().narrow(1, start, layer.values).abs().max().item<double>() > 0);
      start += layer.values;
    }
  }
}

TEST_CASE("computing activations again changes no gradient") {
  Small plain("light", kBase, /*text_encoder=*/true);
  SubjectLoss again(plain.pipeline, plain.adapters, /*checkpointing=*/true);
  torch::manual_seed(3);
  const auto batch = again.draw(plain.data, {0, 2}, /*each=*/1);
  std::vector<at::Tensor> gradients;
  const auto start = at::randn({2, plain.adapters.values().numel()});
  for (const SubjectLoss* loss : {&again, plain.loss.get()}) {
    const auto leaf = start.clone().requires_grad_(true);
    // As from a network, whose own backward pass can run only once.
    const auto [losses, active] = loss->with_activation(leaf.tanh(), batch);
    losses.sum().backward();
    gradients.push_back(leaf.grad());
  }
  CHECK(gradients[0].abs().max().item<double>() > 0);
  CHECK(largest(gradients[0] - gradients[1]) < 1e-6);
}

TEST_CASE("targets lower the loss of their identity, are canonical, and are found again") {
  const ScratchFolder scratch;
  const auto folder = scratch.file("targets");
  Small small;
  const auto start = small.adapters.values().clone();
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
    CHECK(largest(small.adapters.canonical(row) - row) < 1e-5);
  }
  CHECK(largest(small.adapters.values() - start) == 0);
  // Pieces that are there are not made again: with another answer in one, that is the answer.
  const auto path = folder + "/targets-1.safetensors";
  const lightlora::SafetensorsFile piece(path);
  lightlora::save_safetensors(path, {{"values", at::ones({1, start.numel()})}}, piece.metadata());
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) == 0);
  options.steps = 1;
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) > 0);
  // Nor are those of another base taken for this one's.
  lightlora::save_safetensors(
      path, {{"values", at::ones({1, start.numel()})}},
      lightlora::SafetensorsFile(folder + "/targets-0.safetensors").metadata());
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) == 0);
  for (auto& item : small.pipeline.unet()->named_parameters()) {
    if (item.key().find("mid_block.attentions.0") == 0) item.value().mul_(1.5);
  }
  CHECK(largest(train_targets(*small.loss, small.data, start, options, folder, {})[2] - 1) > 0);
}

TEST_CASE("fewer identities are evenly chosen") {
  CHECK(evenly_chosen(10, 4) == std::vector<int64_t>{0, 2, 5, 7});
  CHECK(evenly_chosen(3, 50) == std::vector<int64_t>{0, 1, 2});
}

TEST_CASE("equal adapters have equal canonical values") {
  Small small;
  const torch::NoGradGuard no_grad;
  const auto& set = small.adapters;
  set.assign(at::randn_like(set.values()));
  const auto values = set.values().clone();
  for (const auto& item : set.parts().unet->named_parameters()) {
    at::Tensor value = item.value();
    value.mul_(item.key().find("down") != std::string::npos ? -4.0 : -0.25);
  }
  const auto other = set.values().clone();
  CHECK(largest(other - values) > 0.1);
  CHECK(largest(set.canonical(other) - set.canonical(values)) < 1e-5);

  // Fused, whose core is unique, stays as it is.
  Small fused("fused");
  const auto core = at::randn_like(fused.adapters.values());
  CHECK(largest(fused.adapters.canonical(core) - core) == 0);
}

namespace {

// The six pictures of the demo's subject, under the name that the bundled network's things have.
Identities bundled_subject(sd::StableDiffusion& pipeline, const std::string& folder) {
  Identities data;
  std::vector<at::Tensor> latents;
  std::vector<std::string> captions;
  const std::vector<std::string> colours{"purple", "orange", "yellow", "brown", "white", "green"};
  for (size_t i = 0; i < colours.size(); ++i) {
    const auto file = folder + "/" + std::to_string(i) + "_" + colours[i] + ".png";
    latents.push_back(read_picture(file, pipeline, 64));
    captions.push_back("a sks thing on a " + colours[i] + " background");
  }
  data.names = {"teddy bear"};
  data.first = {0, 6};
  data.latents = at::cat(latents);
  data.caption = at::arange(6);
  data.text = pipeline.encode_prompt(captions);
  data.ids = pipeline.token_ids(captions);
  return data;
}

}  // namespace

// Which neither the base nor the network has seen.
TEST_CASE(
    "the bundled network's prediction draws the bundled subject better than what it is around") {
  const torch::NoGradGuard no_grad;
  const std::string assets =
      std::string(LIGHTLORA_SOURCE_DIR) + "/examples/stable_diffusion/assets";
  sd::StableDiffusion pipeline(assets + "/base");
  Predictor predictor(assets + "/hypernetwork", pipeline);
  const auto mean = predictor.adapters().values().clone();
  const auto data = bundled_subject(pipeline, assets + "/teddy_bear");
  const auto predicted =
      predictor.predict(data.latents.narrow(0, 0, 1)).values().clone().unsqueeze(0);
  const SubjectLoss loss(pipeline, predictor.adapters());
  torch::manual_seed(0);
  const auto batch = loss.draw(data, {0}, /*each=*/48);
  const auto of = [&](const at::Tensor& values) { return loss(values, batch).item<double>(); };
  const double ours = of(predicted);
  // Without adapters every picture is one of its own.
  const double base = loss({}, batch).mean().item<double>();
  INFO("prediction " << ours << ", mean adapter " << of(mean.unsqueeze(0)) << ", base " << base);
  CHECK(ours < 0.9 * of(mean.unsqueeze(0)));
  CHECK(ours < 0.9 * base);
}
