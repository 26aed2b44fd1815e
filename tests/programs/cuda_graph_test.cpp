// SPDX-License-Identifier: Apache-2.0
// What `--cuda_graph` does without a GPU; the recording itself needs one.
#include "support/cuda/graph.h"

#include <iostream>
#include <sstream>

#include "paths.h"
#include "pipeline/pipeline.h"
#include "support.h"
#include "support/images/image.h"
#include "support/images/png.h"
#include "training/trainer.h"

using namespace training;
using torch::Tensor;

namespace {

// The trained values after three steps of two batches each.
Tensor train(const ScratchFolder& pictures, bool cuda_graph) {
  sd::StableDiffusion pipeline(LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets/base",
                               sd::StableDiffusionOptions().load_text_encoder(false));
  auto unet = pipeline.unet();
  torch::manual_seed(1);
  const auto lora = lightlora::patch(*unet, "classic", lightlora::LoRAOptions(2), {"to_q", "to_v"});
  DatasetOptions dataset_options;
  dataset_options.resolution = 32;
  ImageDataset dataset(read_data_folder(pictures.path().string()).pictures, dataset_options);
  SampleOptions sampling;
  sampling.batch_size = 1;
  sampling.prompt = "a toy";
  const int64_t width = unet->options.cross_attention_dim().front();
  PromptStates prompts([&](const std::vector<std::string>& texts) {
    return torch::ones({static_cast<int64_t>(texts.size()), 4, width});
  });
  TrainerOptions options;
  options.gradient_accumulation_steps = 2;
  options.cuda_graph = cuda_graph;
  LossOptions loss_options;
  loss_options.snr_gamma = 5;
  Trainer trainer(
      {unet,
       DiffusionLoss(sd::NoiseSchedule(pipeline.scheduler_config()), loss_options),
       std::move(prompts),
       SampleSource({std::move(dataset), pipeline.vae(), /*cache=*/false, /*seed=*/0}, sampling),
       std::nullopt,
       {lora},
       {{"unet", 1, lora->parameters()}}},
      LearningRate(Schedule::constant, 1e-2, 0, 3), options);
  for (int i = 0; i < 3; ++i) CHECK(trainer.step().loss > 0);
  std::vector<Tensor> values;
  for (const auto& parameter : lora->parameters()) values.push_back(parameter.detach().flatten());
  return torch::cat(values);
}

}  // namespace

TEST_CASE("batches through fixed tensors, as a recording takes them, train to the same bits",
          "[cuda_graph]") {
  const ScratchFolder pictures;
  for (int i = 0; i < 3; ++i) {
    const auto level = static_cast<uint8_t>(60 * i);
    images::save_png(pictures.file(std::to_string(i) + ".png"),
                     images::Image(40, 40, {level, 128, level}));
  }
  const Tensor plain = train(pictures, /*cuda_graph=*/false);
  CHECK(plain.norm().item<double>() > 0);
  CHECK(torch::equal(train(pictures, /*cuda_graph=*/true), plain));
}

TEST_CASE("without a GPU nothing is recorded, and asking for it says what is missing",
          "[cuda_graph]") {
  int runs = 0;
  cuda::Graph graph([&] { ++runs; }, torch::kCPU, /*record=*/false);
  for (int i = 0; i < 6; ++i) graph.run();
  CHECK(runs == 6);
  CHECK_FALSE(graph.recorded());
  CHECK_FALSE(cuda::use_graph(std::nullopt, torch::kCPU));
  CHECK_FALSE(cuda::use_graph(false, torch::kCPU));
  CHECK_THROWS_WITH(cuda::use_graph(true, torch::kCPU), ContainsSubstring("expected a GPU"));
}

TEST_CASE("cuda graph: a GPU without the part for CUDA is said once, with where it is described",
          "[cuda]") {
  const auto cuda = torch::Device(torch::kCUDA);
  std::ostringstream text;
  auto* old = std::cout.rdbuf(text.rdbuf());
  const bool records = cuda::use_graph(std::nullopt, cuda);
  cuda::use_graph(std::nullopt, cuda);
  std::cout.rdbuf(old);
  const auto first = text.str().find("docs/gpu.md");
  CHECK((first == std::string::npos) == records);
  CHECK(text.str().find("docs/gpu.md", first + 1) == std::string::npos);
  if (!records) CHECK_THROWS_WITH(cuda::use_graph(true, cuda), ContainsSubstring("docs/gpu.md"));
}
