// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The layers of Stable Diffusion 1.x, 2.x and XL under diffusers' names, and how files spell them.

namespace lightlora::detail {

inline bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

inline bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

// Takes `start` off the front of `text`, if it is there.
inline bool take(std::string_view& text, std::string_view start) {
  if (!starts_with(text, start)) return false;
  text.remove_prefix(start.size());
  return true;
}

// Takes a number of at most three digits off the front of `text`.
inline std::optional<int> take_number(std::string_view& text) {
  std::size_t digits = 0;
  while (digits < text.size() && std::isdigit(static_cast<unsigned char>(text[digits]))) ++digits;
  if (digits == 0 || digits > 3) return std::nullopt;
  const int number = std::atoi(std::string(text.substr(0, digits)).c_str());
  text.remove_prefix(digits);
  return number;
}

inline std::vector<std::string> unet_patterns() {
  std::vector<std::string> leaves{
      "attentions.#.proj_in", "attentions.#.proj_out",
      "attentions.#.transformer_blocks.#.ff.net.0.proj",
      "attentions.#.transformer_blocks.#.ff.net.2", "resnets.#.conv1", "resnets.#.conv2",
      "resnets.#.time_emb_proj", "resnets.#.conv_shortcut", "downsamplers.#.conv",
      "upsamplers.#.conv",
      // Norms, for what others train of them.
      "resnets.#.norm1", "resnets.#.norm2", "attentions.#.norm",
      "attentions.#.transformer_blocks.#.norm1", "attentions.#.transformer_blocks.#.norm2",
      "attentions.#.transformer_blocks.#.norm3"};
  for (const char* attention : {"attn1", "attn2"}) {
    for (const char* layer : {"to_q", "to_k", "to_v", "to_out.0"}) {
      leaves.push_back(std::string("attentions.#.transformer_blocks.#.") + attention + "." + layer);
    }
  }
  std::vector<std::string> patterns{"conv_in",
                                    "conv_out",
                                    "conv_norm_out",
                                    "time_embedding.linear_1",
                                    "time_embedding.linear_2",
                                    "add_embedding.linear_1",
                                    "add_embedding.linear_2"};
  for (const char* block : {"down_blocks.#.", "mid_block.", "up_blocks.#."}) {
    for (const auto& leaf : leaves) patterns.push_back(block + leaf);
  }
  return patterns;
}

inline std::vector<std::string> text_encoder_patterns() {
  std::vector<std::string> patterns{"text_projection", "text_model.final_layer_norm"};
  for (const char* leaf :
       {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1",
        "mlp.fc2", "layer_norm1", "layer_norm2"}) {
    patterns.push_back(std::string("text_model.encoder.layers.#.") + leaf);
  }
  return patterns;
}

// The dotted name that `pattern` gives a name whose dots are written as `dot`; '#' is a number.
inline std::optional<std::string> match_pattern(const std::string& pattern, std::string_view text,
                                                char dot) {
  std::string name;
  for (char expected : pattern) {
    if (expected == '#') {
      const auto number = take_number(text);
      if (!number) return std::nullopt;
      name += std::to_string(*number);
      continue;
    }
    if (text.empty() || text[0] != (expected == '.' ? dot : expected)) return std::nullopt;
    name += expected;
    text.remove_prefix(1);
  }
  return text.empty() ? std::optional(name) : std::nullopt;
}

inline std::optional<std::string> match_any(const std::vector<std::string>& patterns,
                                            std::string_view text, char dot) {
  for (const auto& pattern : patterns) {
    if (auto name = match_pattern(pattern, text, dot)) return name;
  }
  return std::nullopt;
}

// The layers of one residual block under the original names.
inline std::optional<std::string> ldm_resnet(const std::string& block, int index,
                                             std::string_view leaf) {
  const std::string prefix = block + "_resnets_" + std::to_string(index) + "_";
  if (leaf == "in_layers_0") return prefix + "norm1";
  if (leaf == "in_layers_2") return prefix + "conv1";
  if (leaf == "out_layers_0") return prefix + "norm2";
  if (leaf == "out_layers_3") return prefix + "conv2";
  if (leaf == "emb_layers_1") return prefix + "time_emb_proj";
  if (leaf == "skip_connection") return prefix + "conv_shortcut";
  return std::nullopt;
}

inline std::string numbered(const char* block, int index) { return block + std::to_string(index); }

// "input_blocks_K_S_leaf" and "output_blocks_K_S_leaf": each level has three of
// them, and S tells the residual block, the attention and the resampler apart.
inline std::optional<std::string> ldm_block(std::string_view text, bool input) {
  const auto block = take_number(text);
  if (!block || !take(text, "_")) return std::nullopt;
  const auto part = take_number(text);
  if (!part || !take(text, "_")) return std::nullopt;
  const int position = input ? *block - 1 : *block;
  const int level = position / 3, index = position % 3;
  if (position < 0) return std::nullopt;
  const std::string name = numbered(input ? "down_blocks_" : "up_blocks_", level);
  if (input && text == "op") {
    return index == 2 && *part == 0 ? std::optional(name + "_downsamplers_0_conv") : std::nullopt;
  }
  if (!input && text == "conv") {
    return index == 2 && *part > 0 ? std::optional(name + "_upsamplers_0_conv") : std::nullopt;
  }
  if (input && index == 2) return std::nullopt;
  if (*part == 0) return ldm_resnet(name, index, text);
  if (*part != 1) return std::nullopt;
  return name + "_attentions_" + std::to_string(index) + "_" + std::string(text);
}

// The diffusers name, with underscores, of a layer under the names of the original code.
inline std::optional<std::string> from_ldm(std::string_view text) {
  if (text == "input_blocks_0_0") return "conv_in";
  if (text == "out_0") return "conv_norm_out";
  if (text == "out_2") return "conv_out";
  if (text == "time_embed_0") return "time_embedding_linear_1";
  if (text == "time_embed_2") return "time_embedding_linear_2";
  if (text == "label_emb_0_0") return "add_embedding_linear_1";
  if (text == "label_emb_0_2") return "add_embedding_linear_2";
  if (take(text, "middle_block_0_")) return ldm_resnet("mid_block", 0, text);
  if (take(text, "middle_block_2_")) return ldm_resnet("mid_block", 1, text);
  if (take(text, "middle_block_1_")) return "mid_block_attentions_0_" + std::string(text);
  if (take(text, "input_blocks_")) return ldm_block(text, /*input=*/true);
  if (take(text, "output_blocks_")) return ldm_block(text, /*input=*/false);
  return std::nullopt;
}

/// The UNet layer of that flattened name (kohya's, with diffusers' or the original block names).
inline std::optional<std::string> unet_layer_from_flat(std::string_view flat) {
  static const auto patterns = unet_patterns();
  if (auto name = match_any(patterns, flat, '_')) return name;
  const auto renamed = from_ldm(flat);
  return renamed ? match_any(patterns, *renamed, '_') : std::nullopt;
}

/// Whether a flattened name of a UNet's layer has the original block names.
inline bool is_original_name(std::string_view flat) { return from_ldm(flat).has_value(); }

/// The text encoder's layer of that flattened name, with or without `text_model`.
inline std::optional<std::string> text_layer_from_flat(std::string_view flat) {
  static const auto patterns = text_encoder_patterns();
  if (flat == "text_projection") return "text_projection";
  take(flat, "text_model_");
  return match_any(patterns, "text_model_" + std::string(flat), '_');
}

/// Whether a dotted name is a layer of the UNet that this library knows without the model.
inline bool is_unet_layer(const std::string& name) {
  static const auto patterns = unet_patterns();
  return match_any(patterns, name, '.').has_value();
}

/// Whether a dotted name, which must have `text_model.`, is a layer of the text encoder.
inline bool is_text_layer(const std::string& name) {
  static const auto patterns = text_encoder_patterns();
  return match_any(patterns, name, '.').has_value();
}

/// Whether a layer's name is that of a norm, in a UNet or a text encoder.
inline bool is_norm_name(const std::string& name) {
  return name.find("norm", name.rfind('.') + 1) != name.npos;
}

/// The name of a text encoder's layer in our models, which keep `text_model.` as transformers had
/// it up to 5.5.
inline std::string with_text_model(std::string_view name) {
  if (name == "text_projection") return "text_projection";
  take(name, "text_model.");
  return "text_model." + std::string(name);
}

}  // namespace lightlora::detail
