// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/config.h"
#include "models/unet.h"

namespace sd {

namespace {

// What diffusers' UNet2DConditionModel can do beyond Stable Diffusion 1.x, 2.x and SDXL.
void check_supported(const ConfigReader& reader) {
  reader.supports("_class_name", {"UNet2DConditionModel"});
  reader.supports("act_fn", {"silu", "swish"});
  reader.supports("mid_block_type", {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D"});
  reader.supports("addition_embed_type", {nullptr, "text_time"});
  reader.supports("resnet_time_scale_shift", {"default"});
  reader.supports("time_embedding_type", {"positional"});
  reader.supports("attention_type", {"default"});
  for (const char* field :
       {"dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act"}) {
    reader.supports(field, {false});
  }
  reader.supports("resnet_out_scale_factor", {1.0});
  for (const char* field : {"num_attention_heads", "encoder_hid_dim", "encoder_hid_dim_type",
                            "class_embed_type", "num_class_embeds", "time_embedding_act_fn",
                            "timestep_post_act", "time_cond_proj_dim", "cross_attention_norm"}) {
    reader.supports(field, {nullptr});
  }
}

// Conditions that nothing else uses: with them the two widths are needed, without them left out.
void read_text_time(const nlohmann::json& config, const ConfigReader& reader,
                    UNet2DConditionModelOptions& options) {
  options.text_time(config.value("addition_embed_type", nlohmann::json()) == "text_time");
  if (options.text_time()) {
    options.addition_time_embed_dim(reader.positive("addition_time_embed_dim", 0))
        .projection_class_embeddings_input_dim(
            reader.positive("projection_class_embeddings_input_dim", 0));
    return;
  }
  reader.supports("addition_time_embed_dim", {nullptr});
  reader.supports("projection_class_embeddings_input_dim", {nullptr});
}

// A level may have a list of its own in diffusers only where both halves are given.
void read_transformer_layers(const nlohmann::json& config, const ConfigReader& reader,
                             UNet2DConditionModelOptions& options) {
  options.transformer_layers_per_block(reader.positive_lists(
      "transformer_layers_per_block", options.transformer_layers_per_block()));
  options.reverse_transformer_layers_per_block(
      reader.positive_lists("reverse_transformer_layers_per_block", {}));
  const auto& lists = options.transformer_layers_per_block();
  const bool asymmetric =
      std::any_of(lists.begin(), lists.end(), [](const auto& list) { return list.size() > 1; });
  if (asymmetric && options.reverse_transformer_layers_per_block().empty()) {
    reader.fail("transformer_layers_per_block",
                "one number for each level where reverse_transformer_layers_per_block is left out");
  }
  options.mid_block_attention(config.value("mid_block_type", nlohmann::json()) != "UNetMidBlock2D");
}

// As many numbers as the level has transformers, or one for all of them.
void check_transformer_layers(const std::vector<int64_t>& numbers, int64_t transformers,
                              const char* field, const std::string& source) {
  const auto count = static_cast<int64_t>(numbers.size());
  TORCH_CHECK_VALUE(count == 1 || count == transformers, "'", source, "': expected each list of ",
                    field, " to have 1 or ", transformers,
                    " entries (the level's transformers), got ", count);
}

std::vector<int64_t> read_sample_size(const nlohmann::json& config, const ConfigReader& reader) {
  if (config.value("sample_size", nlohmann::json()).is_null()) return {};
  auto size = reader.positives("sample_size", {});
  if (size.size() == 1) size.push_back(size.front());
  if (size.size() != 2) reader.fail("sample_size", "one size, or height and width");
  return size;
}

template <typename T>
void check_levels(const std::vector<T>& values, size_t levels, const char* field,
                  const std::string& source) {
  TORCH_CHECK_VALUE(values.size() == 1 || values.size() == levels, "'", source, "': expected ",
                    field, " to have 1 or ", levels, " entries (as block_out_channels), got ",
                    values.size());
}

void check_block_types(const std::vector<std::string>& types, size_t levels, const char* field,
                       const std::string& with_attention, const std::string& plain,
                       const std::string& source) {
  TORCH_CHECK_VALUE(types.size() == levels, "'", source, "': expected ", field, " to have ", levels,
                    " entries (as block_out_channels), got ", types.size());
  for (const auto& type : types) {
    TORCH_CHECK_VALUE(type == with_attention || type == plain, "'", source, "': expected ", field,
                      " to be ", with_attention, " or ", plain, ", got ", type,
                      "; hint: only the UNets of Stable Diffusion 1.x, 2.x and XL are supported");
  }
}

}  // namespace

UNet2DConditionModelOptions UNet2DConditionModelOptions::from_json(const nlohmann::json& config,
                                                                   const std::string& source) {
  const ConfigReader reader(config, source);
  check_supported(reader);
  UNet2DConditionModelOptions o;
  o.sample_size(read_sample_size(config, reader))
      .in_channels(reader.positive("in_channels", o.in_channels()))
      .out_channels(reader.positive("out_channels", o.out_channels()))
      .center_input_sample(reader.flag("center_input_sample", o.center_input_sample()))
      .flip_sin_to_cos(reader.flag("flip_sin_to_cos", o.flip_sin_to_cos()))
      .freq_shift(reader.number("freq_shift", o.freq_shift()))
      .time_embedding_dim(reader.optional_positive("time_embedding_dim"))
      .down_block_types(reader.texts("down_block_types", o.down_block_types()))
      .up_block_types(reader.texts("up_block_types", o.up_block_types()))
      .block_out_channels(reader.positives("block_out_channels", o.block_out_channels()))
      .layers_per_block(reader.positives("layers_per_block", o.layers_per_block()))
      .cross_attention_dim(reader.positives("cross_attention_dim", o.cross_attention_dim()))
      .attention_head_dim(reader.positives("attention_head_dim", o.attention_head_dim()))
      .only_cross_attention(reader.flags("only_cross_attention", o.only_cross_attention()))
      .use_linear_projection(reader.flag("use_linear_projection", o.use_linear_projection()))
      .upcast_attention(reader.flag("upcast_attention", o.upcast_attention()))
      .downsample_padding(reader.integer("downsample_padding", o.downsample_padding()))
      .mid_block_scale_factor(reader.number("mid_block_scale_factor", o.mid_block_scale_factor()))
      .dropout(reader.number("dropout", o.dropout()))
      .norm_num_groups(reader.positive("norm_num_groups", o.norm_num_groups()))
      .norm_eps(reader.number("norm_eps", o.norm_eps()))
      .conv_in_kernel(reader.positive("conv_in_kernel", o.conv_in_kernel()))
      .conv_out_kernel(reader.positive("conv_out_kernel", o.conv_out_kernel()));
  read_text_time(config, reader, o);
  read_transformer_layers(config, reader, o);
  o.check(source);
  return o;
}

void UNet2DConditionModelOptions::check(const std::string& source) const {
  const size_t n = levels();
  TORCH_CHECK_VALUE(n > 0, "'", source, "': expected block_out_channels to have entries, got none");
  check_block_types(down_block_types_, n, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D",
                    source);
  check_block_types(up_block_types_, n, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D",
                    source);
  check_levels(layers_per_block_, n, "layers_per_block", source);
  check_levels(transformer_layers_per_block_, n, "transformer_layers_per_block", source);
  if (!reverse_transformer_layers_per_block_.empty()) {
    check_levels(reverse_transformer_layers_per_block_, n, "reverse_transformer_layers_per_block",
                 source);
  }
  check_levels(cross_attention_dim_, n, "cross_attention_dim", source);
  check_levels(attention_head_dim_, n, "attention_head_dim", source);
  check_levels(only_cross_attention_, n, "only_cross_attention", source);
  TORCH_CHECK_VALUE(downsample_padding_ == 0 || downsample_padding_ == 1, "'", source,
                    "': expected downsample_padding to be 0 or 1, got ", downsample_padding_);
  TORCH_CHECK_VALUE(dropout_ >= 0 && dropout_ < 1, "'", source,
                    "': expected dropout to be in [0, 1), got ", dropout_);
  for (size_t level = 0; level < n; ++level) {
    const int64_t channels = block_out_channels_[level];
    const int64_t heads = per_level(attention_head_dim_, level);
    const int64_t layers = per_level(layers_per_block_, level);
    check_transformer_layers(per_level(transformer_layers_per_block_, level), layers,
                             "transformer_layers_per_block", source);
    if (!reverse_transformer_layers_per_block_.empty()) {
      check_transformer_layers(per_level(reverse_transformer_layers_per_block_, n - 1 - level),
                               layers + 1, "reverse_transformer_layers_per_block", source);
    }
    TORCH_CHECK_VALUE(channels % norm_num_groups_ == 0, "'", source,
                      "': expected block_out_channels to be multiples of norm_num_groups (",
                      norm_num_groups_, "), got ", channels);
    TORCH_CHECK_VALUE(heads <= channels, "'", source,
                      "': expected attention_head_dim (the number of heads) to be at most the "
                      "level's ",
                      channels, " channels, got ", heads);
  }
}

}  // namespace sd
