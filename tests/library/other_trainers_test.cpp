// SPDX-License-Identifier: Apache-2.0
// What ComfyUI, OneTrainer and LyCORIS write beside the spellings of dialects_test.cpp.
#include <algorithm>
#include <set>

#include "dialect_files.h"

using namespace lightlora;
using namespace dialect_files;

TEST_CASE("what others train beside adapters is passed over and named", "[dialects]") {
  const ScratchFolder folder;
  auto tensors = kohya_file();
  const std::vector<std::string> others{"lora_unet_double_blocks_0_norm.w_norm",
                                        "lora_unet_double_blocks_0_norm.diff",
                                        "lora_unet_mid_block_attentions_1_proj_in.lora_B.bias"};
  for (const auto& name : others) tensors[name] = torch::ones({4});
  save_safetensors(folder.file("lora"), tensors);
  auto contents = read_adapters(folder.file("lora"));
  check_deltas(contents.components, attention_layers());
  std::sort(contents.ignored.begin(), contents.ignored.end());
  CHECK(std::set<std::string>(contents.ignored.begin(), contents.ignored.end()) ==
        std::set<std::string>(others.begin(), others.end()));
}

TEST_CASE("a whole difference of a weight is applied", "[dialects]") {
  torch::manual_seed(9);
  const auto matrix = torch::randn({6, 4}), kernel = torch::randn({5, 4, 3, 3});
  Files files;
  const auto components = files.read({{"lora_unet_mid_block_attentions_0_proj_in.diff", matrix},
                                      {"lora_unet_conv_in.diff", kernel}});
  CHECK(torch::equal(
      make_adapter(find(components, {"unet", "mid_block.attentions.0.proj_in", {}, {}}))->delta(),
      matrix));
  const auto convolution = find(components, {"unet", "conv_in", {}, {}});
  CHECK(convolution.layer.kernel == std::vector<int64_t>{3, 3});
  CHECK(torch::equal(make_adapter(convolution)->delta(), kernel.flatten(1)));
}

TEST_CASE("ComfyUI's names are those of the original code, with dots", "[dialects]") {
  torch::manual_seed(10);
  const auto down = torch::randn({2, 6}), up = torch::randn({5, 2});
  const std::pair<const char*, Layer> cases[] = {
      {"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
       {"unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", down, up}},
      {"diffusion_model.middle_block.1.proj_in",
       {"unet", "mid_block.attentions.0.proj_in", down, up}},
      {"diffusion_model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
       {"unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", down, up}},
      {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
       {"text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", down, up}}};
  Files files;
  for (const auto& [stem, layer] : cases) {
    INFO(stem);
    const std::string name = stem;
    check_deltas(files.read({{name + ".lora_down.weight", down}, {name + ".lora_up.weight", up}}),
                 {layer});
    check_deltas(files.read({{name + ".lora_A.weight", down}, {name + ".lora_B.weight", up}}),
                 {layer});
  }
}

TEST_CASE("a DoRA scale may have one dimension", "[dialects]") {
  torch::manual_seed(11);
  const auto down = torch::randn({2, 6}), up = torch::randn({5, 2}), scale = torch::rand({5}) + 0.5;
  Files files;
  const std::string name = "lora_unet_mid_block_attentions_0_proj_in";
  const auto read = [&](const at::Tensor& magnitude) {
    return files
        .read({{name + ".lora_down.weight", down},
               {name + ".lora_up.weight", up},
               {name + ".dora_scale", magnitude}})
        .at("unet")
        .at(0)
        .trained;
  };
  CHECK(torch::equal(read(scale).at(DoRA::kMagnitude),
                     read(scale.view({5, 1})).at(DoRA::kMagnitude)));
}
