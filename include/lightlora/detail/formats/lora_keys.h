// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/module_names.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lightlora::detail {

/// What one tensor name of a LoRA file says. Exactly one of `layer` (with `role` and `dialect`),
/// `algorithm`, `redundant`, `passed_over` and nothing is set.
struct LoRAKey {
  /// "unet", "text_encoder", "text_encoder_2" (SDXL), or "" for a layer of another model
  std::string component;
  std::string layer;  ///< the layer's name in our models
  /// down, up, alpha; mid (Tucker); diff (a whole difference), diff_b (of a bias), w_norm and b_norm
  /// (of a norm); magnitude (PEFT) and dora_scale (LyCORIS) of DoRA; LyCORIS' hada_*, lokr_*,
  /// oft_blocks, rescale, a1 to b2, q_layer, p_layer, lambda_layer, ia3 and on_input; PEFT's hira_*,
  /// miss_block, gralora_*, oft_R, boft_* and lora_E; down_aux, up_aux, down_up of the seed article
  std::string role;
  const char* dialect = "";
  std::string algorithm;     ///< a known method that is not read here
  std::string type;          ///< of the layer, if the name tells it
  bool passed_over = false;  ///< what others train beside adapters and no adapter can hold
  bool redundant = false;    ///< stored by old diffusers, used by nobody
  bool original = false;     ///< a UNet's layer under the original block names
};

// The models of a pipeline that files have adapters for.
inline constexpr const char* kComponents[] = {"unet", "text_encoder", "text_encoder_2"};

inline bool is_text_component(std::string_view component) {
  return component == kComponents[1] || component == kComponents[2];
}

// Endings of methods that are not read here, and what they are called.
inline std::string unsupported_algorithm(std::string_view key) {
  static const std::pair<const char*, const char*> marks[] = {{"oft_diag", "OFT"},
                                                              {"ia3_l", "IA3"}};
  for (const auto& [mark, name] : marks) {
    if (key.find(mark) != key.npos) return name;
  }
  return ends_with(key, ".bm.weight") ? "GLoRA with a Tucker core" : "";
}

// The bias of PEFT's second factor, which no adapter here has.
inline bool is_passed_over(std::string_view key) {
  return ends_with(key, ".lora_B.bias") || ends_with(key, ".lora_B.default.bias");
}

// Whether a tensor is of a vector beside the layers, of which a model may have more than we know.
inline bool is_of_vector(std::string_view role) {
  return role == "w_norm" || role == "b_norm" || role == "diff_b";
}

// The name of the embedding that a tensor bundled with a LoRA belongs to, or an empty text:
// "bundle_emb.<name>.string_to_param.*".
inline std::string bundled_embedding(std::string_view key) {
  if (!take(key, "bundle_emb.")) return "";
  return std::string(key.substr(0, key.find('.')));
}

// Cuts the name of a LoHa or LoKr tensor off `key` and returns it; PEFT may write `.default`
// behind.
inline std::string cut_lycoris_role(std::string_view& key) {
  std::string_view stem = key;
  if (ends_with(stem, ".default")) stem.remove_suffix(8);
  const std::size_t dot = stem.rfind('.');
  if (dot == stem.npos) return "";
  static const std::set<std::string, std::less<>> roles{
      "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1",   "hada_t2", "lokr_w1",
      "lokr_w1_a", "lokr_w1_b", "lokr_w2",   "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"};
  const auto role = roles.find(stem.substr(dot + 1));
  if (role == roles.end()) return "";
  key = stem.substr(0, dot);
  return *role;
}

// How the names of factors end, and the dialect if the ending alone tells it.
struct Ending {
  const char* text;
  const char* role;
  const char* dialect;
};

inline constexpr Ending kEndings[] = {{".lora_down", "down", "kohya"},
                                      {".lora_up", "up", "kohya"},
                                      {".lora_linear_layer.down", "down", "diffusers"},
                                      {".lora_linear_layer.up", "up", "diffusers"},
                                      {".lora.down", "down", "diffusers"},
                                      {".lora.up", "up", "diffusers"},
                                      {".lora.down_aux", "down_aux", "seed article"},
                                      {".lora.up_aux", "up_aux", "seed article"},
                                      {".lora.down_up", "down_up", "seed article"},
                                      {"_lora.down", "down", "diffusers attention processors"},
                                      {"_lora.up", "up", "diffusers attention processors"},
                                      {"_lora.down_aux", "down_aux", "seed article"},
                                      {"_lora.up_aux", "up_aux", "seed article"},
                                      {"_lora.down_up", "down_up", "seed article"},
                                      {".lora_A", "down", "diffusers"},
                                      {".lora_B", "up", "diffusers"},
                                      {".lora_embedding_A", "down", "peft"},
                                      {".lora_embedding_B", "up", "peft"},
                                      {".hira_A", "hira_A", "peft"},
                                      {".hira_B", "hira_B", "peft"},
                                      {".miss_block", "miss_block", "peft"},
                                      {".gralora_A", "gralora_A", "peft"},
                                      {".gralora_B", "gralora_B", "peft"},
                                      {".oft_R", "oft_R", "peft"},
                                      {".boft_R", "boft_R", "peft"},
                                      {".boft_s", "boft_s", "peft"},
                                      {".lora_E", "lora_E", "peft"},
                                      {".oft_blocks", "oft_blocks", "LyCORIS"},
                                      {".rescale", "rescale", "LyCORIS"},
                                      {".a1", "a1", "LyCORIS"},
                                      {".a2", "a2", "LyCORIS"},
                                      {".b1", "b1", "LyCORIS"},
                                      {".b2", "b2", "LyCORIS"},
                                      {".q_layer", "q_layer", "LyCORIS"},
                                      {".p_layer", "p_layer", "LyCORIS"},
                                      {".lambda_layer", "lambda_layer", "LyCORIS"},
                                      {".on_input", "on_input", "LyCORIS"},
                                      {".w_norm", "w_norm", "LyCORIS"},
                                      {".b_norm", "b_norm", "LyCORIS"},
                                      {".diff_b", "diff_b", "LyCORIS"},
                                      {".diff", "diff", "LyCORIS"},
                                      {".lora_mid", "mid", "kohya"},
                                      {".dora_scale", "dora_scale", "kohya"},
                                      {".lora_magnitude_vector", "magnitude", "diffusers"}};

// Cuts the ending that names the factor off `key`, and returns the factor. `dialect` is set if the
// ending alone tells it.
inline std::string cut_role(std::string_view& key, const char*& dialect) {
  if (ends_with(key, ".alpha")) {
    key.remove_suffix(6);
    dialect = "diffusers";
    return "alpha";
  }
  if (const std::string role = cut_lycoris_role(key); !role.empty()) {
    dialect = "LyCORIS";
    return role;
  }
  const bool weight = ends_with(key, ".weight");
  if (weight) key.remove_suffix(7);
  if (ends_with(key, ".default")) key.remove_suffix(8);
  for (const auto& ending : kEndings) {
    const std::string_view text = ending.text;
    if (!ends_with(key, text)) continue;
    dialect = ending.dialect;
    key.remove_suffix(text.size());
    return ending.role;
  }
  // LyCORIS' (IA)3 has nothing between the layer and "weight".
  const bool flat = starts_with(key, "lora_") || starts_with(key, "lycoris_");
  if (!weight || !flat || key.find('.') != key.npos) return "";
  dialect = "LyCORIS";
  return "ia3";
}

// The UNet's layer in our spelling: old files call the output of an attention `to_out`.
inline std::string unet_layer(std::string name) {
  return ends_with(name, ".to_out") ? name + ".0" : name;
}

// The text encoder's layer in our spelling. Old files name the processor's factors: either
// `self_attn.to_q`, or, for each projection, all four of `self_attn.k_proj.to_q`, of which only
// the matching one is in use; the others give an empty text.
inline std::string text_layer(std::string_view name) {
  static const std::pair<const char*, const char*> projections[] = {
      {"to_q", "q_proj"}, {"to_k", "k_proj"}, {"to_v", "v_proj"}, {"to_out", "out_proj"}};
  std::string layer = with_text_model(name);
  for (const auto& [old_name, projection] : projections) {
    const std::string ending = std::string(".") + old_name;
    if (!ends_with(layer, ending)) continue;
    layer.resize(layer.size() - ending.size());
    if (ends_with(layer, ".self_attn")) return layer + "." + projection;
    return ends_with(layer, std::string(".") + projection) ? layer : "";
  }
  return layer;
}

// A stem with kohya's prefix; nothing for names that the grammar does not know.
inline std::optional<LoRAKey> parse_flat_stem(std::string_view stem) {
  LoRAKey key;
  key.dialect = "kohya";
  std::optional<std::string> layer;
  if (take(stem, "lora_unet_")) {
    key.component = "unet";
    layer = unet_layer_from_flat(stem);
    key.original = is_original_name(stem);
  } else if (take(stem, "lora_te2_")) {
    key.component = "text_encoder_2";
    layer = text_layer_from_flat(stem);
  } else if (take(stem, "lora_te_") || take(stem, "lora_te1_")) {
    key.component = "text_encoder";
    layer = text_layer_from_flat(stem);
  } else if (take(stem, "lycoris_")) {
    // LyCORIS used by itself has one prefix for whatever it wraps.
    layer = unet_layer_from_flat(stem);
    key.component = layer ? "unet" : "text_encoder";
    if (!layer) layer = text_layer_from_flat(stem);
  }
  if (!layer) return std::nullopt;
  key.layer = *layer;
  return key;
}

// A stem under the names of ComfyUI, which has those of the original code with dots.
inline std::optional<LoRAKey> parse_comfy_stem(std::string_view stem) {
  LoRAKey key;
  std::optional<std::string> layer;
  const auto flat = [&] {
    std::string name(stem);
    std::replace(name.begin(), name.end(), '.', '_');
    return name;
  };
  if (take(stem, "diffusion_model.") || take(stem, "model.diffusion_model.")) {
    key.component = "unet";
    layer = unet_layer_from_flat(flat());
    key.original = is_original_name(flat());
  } else if (take(stem, "text_encoders.clip_g.transformer.") || take(stem, "clip_g.transformer.")) {
    key.component = "text_encoder_2";
    layer = text_layer_from_flat(flat());
  } else if (take(stem, "text_encoders.clip_l.transformer.") || take(stem, "clip_l.transformer.") ||
             take(stem, "cond_stage_model.transformer.")) {
    key.component = "text_encoder";
    layer = text_layer_from_flat(flat());
  }
  if (!layer) return std::nullopt;
  key.layer = *layer;
  return key;
}

// A stem with dots: any number of a component's name and of `base_model.model.` in front.
inline std::optional<LoRAKey> parse_dotted_stem(std::string_view stem) {
  LoRAKey key;
  bool peft = false;
  for (bool more = true; more;) {
    more = false;
    if (take(stem, "base_model.model.")) more = peft = true;
    for (const char* component : kComponents) {
      const std::string prefix = std::string(component) + ".";
      if (!starts_with(stem, prefix)) continue;
      if (!key.component.empty() && key.component != component) return std::nullopt;
      take(stem, prefix);
      key.component = component;
      more = true;
    }
  }
  std::string name(stem);
  const std::size_t processor = name.find(".processor");
  const std::size_t behind = processor + std::string(".processor").size();
  if (processor != name.npos && (behind == name.size() || name[behind] == '.')) {
    name.erase(processor, behind - processor);
  }
  if (name.empty()) return std::nullopt;
  if (key.component.empty() && is_text_layer(text_layer(name))) key.component = "text_encoder";
  if (key.component.empty() && is_unet_layer(unet_layer(name))) key.component = "unet";
  // Without a component only PEFT's prefix tells that this is a layer at all.
  if (key.component.empty() && !peft) return std::nullopt;
  if (peft) key.dialect = "peft";
  if (is_text_component(key.component)) {
    key.layer = text_layer(name);
    key.redundant = key.layer.empty();
  } else {
    key.layer = key.component == "unet" ? unet_layer(name) : name;
  }
  return key;
}

/// Reads one tensor name in any dialect; nothing if it is in none of them.
inline std::optional<LoRAKey> parse_lora_key(const std::string& name) {
  LoRAKey unsupported;
  unsupported.algorithm = unsupported_algorithm(name);
  if (!unsupported.algorithm.empty()) return unsupported;
  std::string_view stem = name;
  const char* dialect = "";
  if (is_passed_over(stem)) {
    unsupported.passed_over = true;
    return unsupported;
  }
  const bool lookup = stem.find(".lora_embedding_") != stem.npos;
  const std::string role = cut_role(stem, dialect);
  if (role.empty()) return std::nullopt;
  const bool flat =
      stem.find('.') == stem.npos && (starts_with(stem, "lora_") || starts_with(stem, "lycoris_"));
  auto key = flat ? parse_flat_stem(stem) : parse_comfy_stem(stem);
  if (!key && !flat) key = parse_dotted_stem(stem);
  if (!key && (role == "diff" || is_of_vector(role))) {  // of a layer that is not known
    unsupported.passed_over = true;
    return unsupported;
  }
  if (!key) return std::nullopt;
  if (lookup) key->type = "Embedding";
  key->role = role;
  if (*key->dialect == '\0') key->dialect = dialect;
  return key;
}

// Why this key may have been left over, or an empty text.
inline std::string likely_cause(const std::string& key) {
  const auto holds = [&](const char* text) { return key.find(text) != key.npos; };
  if (holds("lora_te3_") || holds("text_encoder_3") || holds("add_k_proj")) {
    return "it looks like a LoRA for Stable Diffusion 3 or another transformer model";
  }
  if (holds("double_blocks") || holds("single_blocks") || starts_with(key, "transformer.")) {
    return "it looks like a LoRA for a transformer model such as FLUX, not for Stable Diffusion";
  }
  if (starts_with(key, "unet:") || starts_with(key, "text_encoder:")) {
    return "cloneofsimo/lora numbers its layers; convert it with that project's own tools";
  }
  if (holds("emb_params") || holds("string_to_param") || starts_with(key, "clip_l")) {
    return "it looks like a learned embedding, not a LoRA";
  }
  return "";
}

/// Why keys may have been left over, as the end of an error.
inline std::string likely_cause(const std::vector<std::string>& keys) {
  for (const auto& key : keys) {
    if (auto cause = likely_cause(key); !cause.empty()) return cause;
  }
  const bool weights = std::none_of(keys.begin(), keys.end(),
                                    [](const auto& key) { return key.find("lora") != key.npos; });
  if (weights) return "these look like weights of a whole model, not of a LoRA";
  return "the file was made for another model, or the names were edited";
}

}  // namespace lightlora::detail
