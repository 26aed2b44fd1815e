// SPDX-License-Identifier: Apache-2.0
#include "models/ldm_names.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <map>
#include <vector>

#include "support/cli/fmt.h"

namespace sd {
namespace {

using Parts = std::vector<std::string>;

Parts split_name(const std::string& name) {
  Parts parts{""};
  for (const char c : name) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::string join_from(const Parts& parts, size_t first) {
  std::string text;
  for (size_t i = first; i < parts.size(); ++i) text += (i > first ? "." : "") + parts[i];
  return text;
}

// A name with its first part replaced by what the table says, if it says anything.
std::string renamed(const Parts& parts, size_t first,
                    const std::map<std::string, std::string>& table) {
  const auto found = table.find(parts[first]);
  if (found == table.end()) return join_from(parts, first);
  return found->second + "." + join_from(parts, first + 1);
}

const std::map<std::string, std::string> unet_resnet_names{
    {"norm1", "in_layers.0"},  {"conv1", "in_layers.2"},  {"time_emb_proj", "emb_layers.1"},
    {"norm2", "out_layers.0"}, {"conv2", "out_layers.3"}, {"conv_shortcut", "skip_connection"}};

const std::map<std::string, std::string> vae_resnet_names{{"conv_shortcut", "nin_shortcut"}};

const std::map<std::string, std::string> vae_attention_names{
    {"group_norm", "norm"}, {"to_q", "q"}, {"to_k", "k"}, {"to_v", "v"}};

[[noreturn]] void unknown(const std::string& name) {
  TORCH_CHECK(false, "'", name, "': expected a tensor that Stable Diffusion has, got none; ",
              "hint: this model cannot be written as one file in the original layout");
}

int64_t number(const Parts& parts, size_t at, const std::string& name) {
  if (at >= parts.size()) unknown(name);
  return std::strtoll(parts[at].c_str(), nullptr, 10);
}

// The tensor of a residual block or an attention: "resnets.0.conv1.weight" from its third part on.
std::string unet_leaf(const Parts& parts, size_t kind) {
  return parts[kind] == "resnets" ? "0." + renamed(parts, kind + 2, unet_resnet_names)
                                  : "1." + join_from(parts, kind + 2);
}

std::string vae_block(const Parts& parts, size_t at, const std::string& side,
                      const std::string& level) {
  if (parts[at] == "resnets") {
    return side + level + ".block." + parts[at + 1] + "." +
           renamed(parts, at + 2, vae_resnet_names);
  }
  const bool down = parts[at] == "downsamplers";
  return side + level + (down ? ".downsample." : ".upsample.") + join_from(parts, at + 2);
}

std::string vae_middle(const Parts& parts, size_t at, const std::string& side) {
  if (parts[at] == "resnets") {
    const std::string block = parts[at + 1] == "0" ? "mid.block_1." : "mid.block_2.";
    return side + block + renamed(parts, at + 2, vae_resnet_names);
  }
  if (parts[at + 2] == "to_out") return side + "mid.attn_1.proj_out." + parts.back();
  return side + "mid.attn_1." + renamed(parts, at + 2, vae_attention_names);
}

}  // namespace

std::string ldm_unet_name(const std::string& name, const UNet2DConditionModelOptions& options) {
  static const std::map<std::string, std::string> outer{
      {"conv_in", "input_blocks.0.0"}, {"conv_norm_out", "out.0"}, {"conv_out", "out.2"}};
  const Parts parts = split_name(name);
  if (outer.count(parts[0])) return renamed(parts, 0, outer);
  if (parts[0] == "time_embedding") {
    return (parts[1] == "linear_1" ? "time_embed.0." : "time_embed.2.") + join_from(parts, 2);
  }
  if (parts[0] == "add_embedding") {
    return (parts[1] == "linear_1" ? "label_emb.0.0." : "label_emb.0.2.") + join_from(parts, 2);
  }
  if (parts[0] == "mid_block") {
    const std::string at = parts[1] == "attentions" ? "1" : parts[2] == "0" ? "0" : "2";
    const std::string leaf = unet_leaf(parts, 1);
    return "middle_block." + at + leaf.substr(1);
  }
  // Each level has as many original blocks as residual blocks, and one for the resampler or, going
  // up, one residual block more.
  const int64_t layers = options.layers_per_block().front(), stride = layers + 1;
  const int64_t level = number(parts, 1, name), index = number(parts, 3, name);
  const std::string& kind = parts[2];
  if (parts[0] == "down_blocks") {
    if (kind == "downsamplers") {
      return fmt::format("input_blocks.{}.0.op.{}", (level + 1) * stride, parts.back());
    }
    return fmt::format("input_blocks.{}.{}", 1 + level * stride + index, unet_leaf(parts, 2));
  }
  if (parts[0] != "up_blocks") unknown(name);
  const std::string block = fmt::format("output_blocks.{}.", level * stride + index);
  if (kind != "upsamplers") return block + unet_leaf(parts, 2);
  const bool attends =
      options.up_block_types().at(static_cast<size_t>(level)).rfind("CrossAttn", 0) == 0;
  return fmt::format("output_blocks.{}.{}.{}", level * stride + layers, attends ? 2 : 1,
                     join_from(parts, 4));
}

std::string ldm_vae_name(const std::string& name, const AutoencoderKLOptions& options) {
  const Parts parts = split_name(name);
  if (parts[0] == "quant_conv" || parts[0] == "post_quant_conv") return name;
  if (parts.size() < 3) unknown(name);
  const std::string side = parts[0] + ".";
  if (parts[1] == "conv_in" || parts[1] == "conv_out") return name;
  if (parts[1] == "conv_norm_out") return side + "norm_out." + parts.back();
  if (parts.size() < 5) unknown(name);
  if (parts[1] == "mid_block") return vae_middle(parts, 2, side);
  if (parts[1] == "down_blocks") return vae_block(parts, 3, side + "down.", parts[2]);
  if (parts[1] != "up_blocks") unknown(name);
  // The original counts the decoder's levels from the largest picture.
  const auto last = static_cast<int64_t>(options.block_out_channels().size()) - 1;
  return vae_block(parts, 3, side + "up.", fmt::to_string(last - number(parts, 2, name)));
}

}  // namespace sd
