// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>

#include "models/config.h"
#include "models/vae.h"

namespace sd {

namespace {

void check_block_types(const std::vector<std::string>& types, size_t levels, const char* field,
                       const std::string& known, const std::string& source) {
  TORCH_CHECK_VALUE(types.size() == levels, "'", source, "': expected ", field, " to have ", levels,
                    " entries (as block_out_channels), got ", types.size());
  for (const auto& type : types) {
    TORCH_CHECK_VALUE(type == known, "'", source, "': expected ", field, " to be ", known, ", got ",
                      type, "; hint: only the autoencoders of Stable Diffusion are supported");
  }
}

}  // namespace

AutoencoderKLOptions AutoencoderKLOptions::from_json(const nlohmann::json& config,
                                                     const std::string& source) {
  const ConfigReader reader(config, source);
  reader.supports("_class_name", {"AutoencoderKL"});
  reader.supports("act_fn", {"silu", "swish"});
  for (const char* field : {"shift_factor", "latents_mean", "latents_std"}) {
    reader.supports(field, {nullptr});
  }
  AutoencoderKLOptions o;
  auto size = reader.positives("sample_size", o.sample_size());
  if (size.size() == 1) size.push_back(size.front());
  if (size.size() != 2) reader.fail("sample_size", "one size, or height and width");
  o.in_channels(reader.positive("in_channels", o.in_channels()))
      .out_channels(reader.positive("out_channels", o.out_channels()))
      .down_block_types(reader.texts("down_block_types", o.down_block_types()))
      .up_block_types(reader.texts("up_block_types", o.up_block_types()))
      .block_out_channels(reader.positives("block_out_channels", o.block_out_channels()))
      .layers_per_block(reader.positive("layers_per_block", o.layers_per_block()))
      .latent_channels(reader.positive("latent_channels", o.latent_channels()))
      .norm_num_groups(reader.positive("norm_num_groups", o.norm_num_groups()))
      .sample_size(size)
      .scaling_factor(reader.number("scaling_factor", o.scaling_factor()))
      .force_upcast(reader.flag("force_upcast", o.force_upcast()))
      .use_quant_conv(reader.flag("use_quant_conv", o.use_quant_conv()))
      .use_post_quant_conv(reader.flag("use_post_quant_conv", o.use_post_quant_conv()))
      .mid_block_add_attention(reader.flag("mid_block_add_attention", o.mid_block_add_attention()));
  if (o.scaling_factor() <= 0) reader.fail("scaling_factor", "a positive number");
  o.check(source);
  return o;
}

void AutoencoderKLOptions::check(const std::string& source) const {
  const size_t levels = block_out_channels_.size();
  TORCH_CHECK_VALUE(levels > 0, "'", source,
                    "': expected block_out_channels to have entries, got none");
  check_block_types(down_block_types_, levels, "down_block_types", "DownEncoderBlock2D", source);
  check_block_types(up_block_types_, levels, "up_block_types", "UpDecoderBlock2D", source);
  for (const int64_t channels : block_out_channels_) {
    TORCH_CHECK_VALUE(channels % norm_num_groups_ == 0, "'", source,
                      "': expected block_out_channels to be multiples of norm_num_groups (",
                      norm_num_groups_, "), got ", channels);
  }
}

}  // namespace sd
