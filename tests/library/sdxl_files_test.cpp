// SPDX-License-Identifier: Apache-2.0
// LoRA files of SDXL: two text encoders, the original block names, and what files say of families.
#include <lightlora/file_io.h>
#include <lightlora/files.h>

#include <map>
#include <string>

#include "support.h"

namespace {

using namespace lightlora;

// One layer of classic factors.
LayerState layer(const std::string& name, int64_t in, int64_t out) {
  LayerState state;
  state.variant = "classic";
  state.layer = {name, in, out, {}};
  state.options.rank(2);
  state.trained["down"] = torch::randn({2, in});
  state.trained["up"] = torch::randn({out, 2});
  return state;
}

const std::string attention = "attentions.1.transformer_blocks.0.attn2.to_k";
const std::string projection = "text_model.encoder.layers.0.self_attn.q_proj";

Components sdxl() {
  return {{"unet", {layer("down_blocks.1." + attention, 2048, 640)}},
          {"text_encoder", {layer(projection, 768, 768)}},
          {"text_encoder_2", {layer(projection, 1280, 1280)}}};
}

at::Tensor delta(const LayerState& state) {
  return state.scale *
         state.trained.at("up").flatten(1).matmul(state.trained.at("down").flatten(1));
}

void check_equal(const Components& one, const Components& other) {
  for (const auto& [component, state] : one) {
    for (const auto& wanted : state) {
      const LayerState* found = nullptr;
      for (const auto& candidate : other.at(component)) {
        if (candidate.layer.name == wanted.layer.name) found = &candidate;
      }
      REQUIRE(found != nullptr);
      CHECK(close(delta(*found), delta(wanted), 1e-5));
    }
  }
}

struct Scratch : ScratchFolder {
  // Reads a file of kohya's names, each with factors and an alpha of its own.
  Components read(const std::vector<std::string>& names) {
    tensors.clear();
    for (const auto& name : names) {
      tensors[name + ".lora_down.weight"] = torch::randn({2, 4});
      tensors[name + ".lora_up.weight"] = torch::randn({6, 2});
      tensors[name + ".alpha"] = torch::rand({}) + 0.5;
    }
    save_safetensors(file("x.safetensors"), tensors);
    return read_adapters(file("x.safetensors")).components;
  }

  // What kohya's tensors of a name stand for: alpha over the rank times the factors' product.
  at::Tensor delta_of(const std::string& name) const {
    const auto scale = tensors.at(name + ".alpha").item<double>() / 2;
    return scale *
           tensors.at(name + ".lora_up.weight").matmul(tensors.at(name + ".lora_down.weight"));
  }

  TensorMap tensors;
};

}  // namespace

TEST_CASE("sdxl files: every format brings both text encoders back", "[files][sdxl]") {
  torch::manual_seed(0);
  const Scratch scratch;
  const auto components = sdxl();
  for (const Format format : {Format::native, Format::diffusers, Format::kohya, Format::peft}) {
    CAPTURE(to_string(format));
    const auto path = scratch.file(to_string(format) + "_file");
    save(components, path, format);
    const auto read = read_adapters(path);
    CHECK(read.components.size() == 3);
    check_equal(components, read.components);
  }
  const SafetensorsFile diffusers(scratch.file("diffusers_file"));
  CHECK(diffusers.contains("text_encoder_2." + projection + ".lora_linear_layer.down.weight"));
  const SafetensorsFile kohya(scratch.file("kohya_file"));
  for (const char* start : {"lora_te1_", "lora_te2_"}) {
    CHECK(kohya.contains(std::string(start) +
                         "text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"));
  }
}

TEST_CASE("sdxl files: the original block names mean diffusers' layers", "[files][sdxl]") {
  const std::map<std::string, std::string> names{
      {"input_blocks_4_1_transformer_blocks_1_attn1_to_q",
       "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"},
      {"input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
       "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"},
      {"middle_block_1_transformer_blocks_9_attn2_to_out_0",
       "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0"},
      {"output_blocks_2_1_proj_in", "up_blocks.0.attentions.2.proj_in"},
      {"output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"},
      {"output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"},
      {"output_blocks_8_0_in_layers_2", "up_blocks.2.resnets.2.conv1"},
      {"input_blocks_6_0_op", "down_blocks.1.downsamplers.0.conv"},
      {"label_emb_0_0", "add_embedding.linear_1"},
      {"label_emb_0_2", "add_embedding.linear_2"},
      {"time_embed_0", "time_embedding.linear_1"}};
  torch::manual_seed(0);
  Scratch scratch;
  std::vector<std::string> all;
  for (const auto& item : names) all.push_back("lora_unet_" + item.first);
  // One by one, so that no other name helps to tell what it means, and all of one file.
  for (const auto& [original, ours] : names) {
    CAPTURE(original);
    const auto read = scratch.read({"lora_unet_" + original});
    REQUIRE(read.count("unet") == 1);
    CHECK(read.at("unet").front().layer.name == ours);
  }
  const auto read = scratch.read(all);
  REQUIRE(read.at("unet").size() == names.size());
  std::map<std::string, std::string> originals;
  for (const auto& [original, ours] : names) originals[ours] = "lora_unet_" + original;
  for (const auto& state : read.at("unet")) {
    CAPTURE(state.layer.name);
    CHECK(close(delta(state), scratch.delta_of(originals.at(state.layer.name)), 1e-6));
  }
}

TEST_CASE("sdxl files: two namings of one UNet's blocks are an error", "[files][sdxl]") {
  Scratch scratch;
  CHECK_THROWS_WITH(
      scratch.read({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k"}),
      ContainsSubstring("expected one naming of the UNet's blocks, got both"));
}

TEST_CASE("sdxl files: adapters tell their family, and kohya's metadata say it", "[files][sdxl]") {
  const Scratch scratch;
  const auto cross = [](int64_t width) {
    return Components{{"unet", {layer("down_blocks.1." + attention, width, 64)}}};
  };
  struct Case {
    Components components;
    std::string family, version, architecture, v2;
  };
  const std::string second = "mid_block.attentions.0.transformer_blocks.1.attn1.to_q";
  const Case cases[] = {
      {cross(768), "sd1", "sd_v1", "stable-diffusion-v1/lora", "False"},
      {cross(1024), "sd2", "sd_v2", "stable-diffusion-v2-512/lora", "True"},
      {cross(2048), "sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "False"},
      {sdxl(), "sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "False"},
      {{{"unet", {layer(second, 64, 64)}}},
       "sdxl",
       "sdxl_base_v1-0",
       "stable-diffusion-xl-v1-base/lora",
       "False"},
      {{{"text_encoder", {layer(projection, 1024, 1024)}}},
       "sd2",
       "sd_v2",
       "stable-diffusion-v2-512/lora",
       "True"},
      {cross(24), "", "sd_v1", "stable-diffusion-v1/lora", "False"}};
  for (const auto& one : cases) {
    CHECK(model_family(one.components) == one.family);
    save(one.components, scratch.file("k.safetensors"), Format::kohya);
    auto metadata = SafetensorsFile(scratch.file("k.safetensors")).metadata();
    CHECK(metadata["ss_base_model_version"] == one.version);
    CHECK(metadata["modelspec.architecture"] == one.architecture);
    CHECK(metadata["ss_v2"] == one.v2);
    CHECK(metadata.count("modelspec.prediction_type") == 0);
  }
}

TEST_CASE("kohya files of models of v say so where sd-scripts does", "[files][sdxl]") {
  const Scratch scratch;
  struct Case {
    int64_t width;
    std::string version, architecture;
  };
  const Case cases[] = {{768, "sd_v1_v", "stable-diffusion-v1/lora"},
                        {1024, "sd_v2_v", "stable-diffusion-v2-768-v/lora"},
                        {2048, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"}};
  const auto path = scratch.file("k.safetensors");
  for (const auto& one : cases) {
    const Components components{{"unet", {layer("down_blocks.1." + attention, one.width, 64)}}};
    const auto metadata_of = [&](const std::string& prediction) {
      save(components, path,
           SaveOptions(Format::kohya).metadata({{"modelspec.prediction_type", prediction}}));
      return SafetensorsFile(path).metadata();
    };
    auto metadata = metadata_of("v");
    CHECK(metadata["ss_base_model_version"] == one.version);
    CHECK(metadata["modelspec.architecture"] == one.architecture);
    CHECK(metadata["modelspec.prediction_type"] == "v");
    CHECK(metadata_of("epsilon")["ss_base_model_version"] != "sd_v2_v");
    CHECK(metadata["ss_v2"] == (one.width == 1024 ? "True" : "False"));
  }
}
