// SPDX-License-Identifier: Apache-2.0
// Training from C++: options in, files out, and no command line.
#include <lightlora/embeddings.h>
#include <lightlora/files.h>

#include <fstream>
#include <iterator>

#include "paths.h"
#include "support.h"
#include "training/dreambooth.h"
#include "training/inversion.h"

using namespace training;

namespace {

const std::string kAssets = LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets";

DreamBoothOptions dreambooth_into(const std::string& folder) {
  DreamBoothOptions options;
  options.model.path = kAssets + "/base";
  options.instance_data_dir = kAssets + "/teddy_bear";
  options.instance_prompt = "a sks bear";
  options.adapter.variant = "classic";
  options.adapter.lora.rank(3).init(lightlora::Init::down_zero);
  options.optimization.train_batch_size = 2;
  options.optimization.max_train_steps = 2;
  options.optimization.lr_scheduler = Schedule::linear;
  options.run.output_dir = folder;
  options.run.tensorboard = false;
  options.machine.device = "cpu";
  return options;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("training: DreamBooth runs from options in C++ and leaves a file that loads",
          "[training_api]") {
  const ScratchFolder folder;
  const auto options = dreambooth_into(folder.file("whole"));
  const Outcome outcome = train_dreambooth(options);
  CHECK(outcome.finished);
  CHECK(outcome.steps == 2);
  const auto native = folder.file("whole/lightlora.safetensors");
  const auto state = lightlora::read_adapters(native).components;
  CHECK(state.at("unet").front().variant == "classic");
  CHECK(state.at("unet").front().options.rank() == 3);
  CHECK(state.at("unet").front().trained.at("down").abs().max().item<double>() > 0);
  // What was open is decided in the plan, and stays open in the caller's options.
  CHECK_FALSE(options.optimization.learning_rate.has_value());
  CHECK_FALSE(options.data.resolution.has_value());
  CHECK_THAT(bytes_of(folder.file("whole/config.toml")),
             ContainsSubstring("learning_rate = 0.0005\n"));
}

TEST_CASE("training: a run from C++ that stops and goes on ends with the same bytes",
          "[training_api]") {
  const ScratchFolder folder;
  train_dreambooth(dreambooth_into(folder.file("whole")));
  auto parts = dreambooth_into(folder.file("parts"));
  parts.optimization.lr_scheduler = Schedule::constant;
  auto whole = dreambooth_into(folder.file("constant"));
  whole.optimization.lr_scheduler = Schedule::constant;
  train_dreambooth(whole);
  parts.optimization.max_train_steps = 1;
  parts.run.checkpointing_steps = 1;
  train_dreambooth(parts);
  parts.optimization.max_train_steps = 2;
  parts.run.resume_from_checkpoint = "latest";
  CHECK(train_dreambooth(parts).steps == 2);
  const auto bytes = [&](const char* name) {
    return bytes_of(folder.file(std::string(name) + "/lightlora.safetensors"));
  };
  CHECK(bytes("parts") == bytes("constant"));
  CHECK(bytes("parts") != bytes("whole"));
}

TEST_CASE("training: options that do not go together are refused from C++ as from flags",
          "[training_api]") {
  const ScratchFolder folder;
  auto options = dreambooth_into(folder.file("out"));
  options.adapter.split_rank = 2;
  CHECK_THROWS_WITH(train_dreambooth(options), ContainsSubstring("expected --variant fused"));
  CHECK_FALSE(std::filesystem::exists(folder.file("out")));
}

TEST_CASE("training: a word is learned from options in C++", "[training_api]") {
  const ScratchFolder folder;
  InversionOptions options;
  options.model.path = kAssets + "/base";
  options.train_data_dir = kAssets + "/teddy_bear";
  options.placeholder_token = "<toy>";
  options.initializer_token = "bear";
  options.learnable_property = Property::style;
  options.optimization.train_batch_size = 1;
  options.optimization.max_train_steps = 1;
  options.run.output_dir = folder.path().string();
  options.machine.device = "cpu";
  CHECK(train_inversion(options).finished);
  const auto words = lightlora::load_embeddings(folder.file("learned_embeds.safetensors"));
  CHECK(words.at(0).token == "<toy>");
}

TEST_CASE("training: what a resumed run may change is said at the flag", "[training_api]") {
  std::map<std::string, bool> free;
  for (const auto& setting : settings_of(DreamBoothOptions())) {
    free[setting.name] = setting.free_on_resume;
  }
  for (const char* name : {"output_dir", "checkpointing_steps", "device", "instance_data_dir"}) {
    CHECK(free.at(name));
  }
  for (const char* name : {"seed", "rank", "lr_scheduler", "noise_offset", "train_batch_size"}) {
    CHECK_FALSE(free.at(name));
  }
}
