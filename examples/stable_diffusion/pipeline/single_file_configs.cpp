// SPDX-License-Identifier: Apache-2.0
// The configurations of a model in a single file, from the shapes of its tensors and from what all
// models of its family have in common.
#include <algorithm>

#include "models/ldm_names.h"
#include "models/open_clip.h"
#include "pipeline/single_file.h"
#include "pipeline/single_file_parts.h"
#include "support/cli/fmt.h"

namespace sd {

using nlohmann::json;

namespace {

// Width of an attention head in everything but Stable Diffusion 1.x, which has eight heads.
constexpr int64_t kHeadWidth = 64;

int64_t heads_of(int64_t width) { return std::max<int64_t>(width / kHeadWidth, 1); }

}  // namespace

ModelFamily SingleFile::family() const {
  if (two_text_encoders()) return ModelFamily::sdxl;
  return has(kLdmOpenClip) ? ModelFamily::sd2 : ModelFamily::sd1;
}

// Transformer blocks of an attention.
int64_t SingleFile::transformer_layers(const std::string& attention) const {
  int64_t count = 0;
  while (find(fmt::format("{}.transformer_blocks.{}.norm1.weight", attention, count))) {
    ++count;
  }
  return std::max<int64_t>(count, 1);
}

json SingleFile::unet_config() const {
  const std::string unet = kLdmUnet;
  // Each level ends with a downsampler, except the last.
  std::vector<int64_t> channels, heads, layers;
  std::vector<std::string> down_types, up_types;
  int64_t stride = 0, width = 0;
  for (int64_t block = 1; find(fmt::format("{}input_blocks.{}.0.op.weight", unet, block)) ||
                          find(fmt::format("{}input_blocks.{}.0.in_layers.0.weight", unet, block));
       ++block) {
    if (stride == 0 && find(fmt::format("{}input_blocks.{}.0.op.weight", unet, block))) {
      stride = block;
    }
  }
  TORCH_CHECK(stride > 1, "'", path_, "': expected the blocks of a UNet, got none that fit");
  bool linear = false;
  for (int64_t level = 0;; ++level) {
    const std::string block = fmt::format("{}input_blocks.{}", unet, 1 + level * stride);
    if (!find(block + ".0.in_layers.0.weight")) break;
    const auto* projection = find(block + ".1.proj_in.weight");
    const bool attends = projection != nullptr;
    channels.push_back(size(block + ".0.out_layers.3.weight", 0));
    heads.push_back(heads_of(channels.back()));
    layers.push_back(transformer_layers(block + ".1"));
    down_types.emplace_back(attends ? "CrossAttnDownBlock2D" : "DownBlock2D");
    up_types.insert(up_types.begin(), attends ? "CrossAttnUpBlock2D" : "UpBlock2D");
    if (!attends) continue;
    width = size(block + ".1.transformer_blocks.0.attn2.to_k.weight", 1);
    linear = projection->shape.size() == 2;
  }
  // The middle has as many transformer blocks as the last level.
  layers.back() = transformer_layers(unet + "middle_block.1");
  json config{{"_class_name", "UNet2DConditionModel"},
              {"sample_size", 64},
              {"in_channels", size(unet + "input_blocks.0.0.weight", 1)},
              {"out_channels", size(unet + "out.2.weight", 0)},
              {"block_out_channels", channels},
              {"down_block_types", down_types},
              {"up_block_types", up_types},
              {"layers_per_block", stride - 1},
              {"cross_attention_dim", width},
              {"attention_head_dim", 8}};
  if (family() == ModelFamily::sd1) return config;
  config["attention_head_dim"] = heads;
  config["use_linear_projection"] = linear;
  config["transformer_layers_per_block"] = layers;
  add_family(config);
  return config;
}

// What only a family newer than 1.x has.
void SingleFile::add_family(json& unet) const {
  if (family() == ModelFamily::sd2) {
    unet["upcast_attention"] = true;
    const auto scheduler = config("scheduler");
    if (scheduler.value("prediction_type", json()) == "v_prediction") unet["sample_size"] = 96;
    return;
  }
  unet["sample_size"] = 128;
  unet["addition_embed_type"] = "text_time";
  unet["addition_time_embed_dim"] = 256;
  unet["projection_class_embeddings_input_dim"] =
      size(std::string(kLdmUnet) + "label_emb.0.0.weight", 1);
}

json SingleFile::vae_config() const {
  const std::string vae = kLdmVae;
  const auto down = [&](size_t level, int64_t block) {
    return fmt::format("{}encoder.down.{}.block.{}.conv2.weight", vae, level, block);
  };
  std::vector<int64_t> channels;
  while (find(down(channels.size(), 0))) channels.push_back(size(down(channels.size(), 0), 0));
  int64_t layers = 0;
  while (find(down(0, layers))) ++layers;
  const bool xl = family() == ModelFamily::sdxl;
  return {{"_class_name", "AutoencoderKL"},
          {"sample_size", xl ? 1024 : 512},
          {"in_channels", size(vae + "encoder.conv_in.weight", 1)},
          {"out_channels", size(vae + "decoder.conv_out.weight", 0)},
          {"latent_channels", size(vae + "decoder.conv_in.weight", 1)},
          {"block_out_channels", channels},
          {"down_block_types", std::vector<std::string>(channels.size(), "DownEncoderBlock2D")},
          {"up_block_types", std::vector<std::string>(channels.size(), "UpDecoderBlock2D")},
          {"layers_per_block", layers},
          {"mid_block_add_attention", find(vae + "decoder.mid.attn_1.q.weight") != nullptr},
          {"norm_num_groups", 32},
          {"scaling_factor", xl ? 0.13025 : 0.18215}};
}

json SingleFile::text_config(const std::string& text_encoder) const {
  const auto [prefix, open_clip] = text_place(text_encoder);
  const std::string model =
      !open_clip && find(prefix + "text_model.final_layer_norm.weight") ? "text_model." : "";
  const auto layer = [&, start = prefix, open = open_clip](int64_t index) {
    const std::string block = open ? "transformer.resblocks." : model + "encoder.layers.";
    return fmt::format("{}{}{}.mlp.{}.weight", start, block, index, open ? "c_fc" : "fc1");
  };
  const std::string tokens =
      prefix + (open_clip ? "token_embedding.weight" : model + "embeddings.token_embedding.weight");
  const std::string positions =
      prefix +
      (open_clip ? "positional_embedding" : model + "embeddings.position_embedding.weight");
  int64_t layers = 0;
  while (find(layer(layers))) ++layers;
  const auto* projection = find(prefix + "text_projection");
  // Stable Diffusion 2.x reads the last layer but one; its folders leave out the last.
  if (family() == ModelFamily::sd2 && projection != nullptr) --layers;
  const int64_t hidden = size(tokens, 1);
  json config{
      {"vocab_size", size(tokens, 0)},           {"hidden_size", hidden},
      {"intermediate_size", size(layer(0), 0)},  {"num_hidden_layers", layers},
      {"num_attention_heads", heads_of(hidden)}, {"max_position_embeddings", size(positions, 0)},
      {"eos_token_id", size(tokens, 0) - 1}};
  if (open_clip) config["hidden_act"] = "gelu";
  if (open_clip && projection != nullptr) {
    config["projection_dim"] = size(prefix + "text_projection", 1);
  }
  return config;
}

}  // namespace sd
