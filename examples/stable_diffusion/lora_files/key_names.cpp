// SPDX-License-Identifier: Apache-2.0
#include "lora_files/key_names.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "lora_files/layer_places.h"

namespace lora_files {
namespace {

struct Ending {
  const char *text, *part, *method;
};

// Longer ones before those that they end with.
constexpr Ending kEndings[] = {
    {".lora_linear_layer.down.weight", "down", "LoRA"},
    {".lora_linear_layer.up.weight", "up", "LoRA"},
    {".lora_down.weight", "down", "LoRA"},
    {".lora_up.weight", "up", "LoRA"},
    {".lora_mid.weight", "mid", "LoRA with Tucker cores"},
    {".lora.down.weight", "down", "LoRA"},
    {".lora.up.weight", "up", "LoRA"},
    {"_lora.down.weight", "down", "LoRA"},
    {"_lora.up.weight", "up", "LoRA"},
    {".lora_A.default.weight", "down", "LoRA"},
    {".lora_B.default.weight", "up", "LoRA"},
    {".lora_A.weight", "down", "LoRA"},
    {".lora_B.weight", "up", "LoRA"},
    {".lora_embedding_A", "down", "LoRA"},
    {".lora_embedding_B", "up", "LoRA"},
    {".lora_A", "down", "LoRA"},
    {".lora_B", "up", "LoRA"},
    {".lora_B.bias", "bias", "biases"},
    {".lora_magnitude_vector", "magnitude", "DoRA"},
    {".lora_magnitude_vector.weight", "magnitude", "DoRA"},
    {".dora_scale", "magnitude", "DoRA"},
    {".alpha", "alpha", ""},
    {".hada_w1_a", "hada_w1_a", "LoHa"},
    {".hada_w1_b", "hada_w1_b", "LoHa"},
    {".hada_w2_a", "hada_w2_a", "LoHa"},
    {".hada_w2_b", "hada_w2_b", "LoHa"},
    {".hada_t1", "hada_t1", "LoHa"},
    {".hada_t2", "hada_t2", "LoHa"},
    {".lokr_w1", "lokr_w1", "LoKr"},
    {".lokr_w1_a", "lokr_w1_a", "LoKr"},
    {".lokr_w1_b", "lokr_w1_b", "LoKr"},
    {".lokr_w2", "lokr_w2", "LoKr"},
    {".lokr_w2_a", "lokr_w2_a", "LoKr"},
    {".lokr_w2_b", "lokr_w2_b", "LoKr"},
    {".lokr_t2", "lokr_t2", "LoKr"},
    {".oft_blocks", "oft_blocks", "OFT"},
    {".oft_diag", "oft_blocks", "OFT"},
    {".rescale", "rescale", "OFT"},
    {".oft_R.weight", "oft_R", "OFT v2"},
    {".boft_R", "boft_R", "BOFT"},
    {".boft_s", "boft_s", "BOFT"},
    {".a1.weight", "a1", "GLoRA"},
    {".a2.weight", "a2", "GLoRA"},
    {".b1.weight", "b1", "GLoRA"},
    {".b2.weight", "b2", "GLoRA"},
    {".bm.weight", "bm", "GLoRA"},
    {".q_layer.weight", "q_layer", "T-LoRA"},
    {".p_layer.weight", "p_layer", "T-LoRA"},
    {".lambda_layer", "lambda", "T-LoRA"},
    {".on_input", "on_input", "(IA)3"},
    // PEFT's other methods.
    {".ia3_l", "ia3_l", "(IA)3"},
    {".lora_E", "lora_E", "AdaLoRA"},
    {".hira_A", "hira_A", "HiRA"},
    {".hira_B", "hira_B", "HiRA"},
    {".miss_block", "miss_block", "MiSS"},
    {".gralora_A", "gralora_A", "GraLoRA"},
    {".gralora_B", "gralora_B", "GraLoRA"},
    {".vera_lambda_b", "vera_lambda_b", "VeRA"},
    {".vera_lambda_d", "vera_lambda_d", "VeRA"},
    {".vera_A", "vera_A", "VeRA"},
    {".vera_B", "vera_B", "VeRA"},
    {".shira_weight", "shira_weight", "SHiRA"},
    {".shira_indices", "shira_indices", "SHiRA"},
    {".randlora_A", "randlora_A", "RandLoRA"},
    {".randlora_B", "randlora_B", "RandLoRA"},
    {".randlora_lambda", "randlora_lambda", "RandLoRA"},
    {".randlora_gamma", "randlora_gamma", "RandLoRA"},
    {".hra_u", "hra_u", "HRA"},
    {".delora_A", "delora_A", "DeLoRA"},
    {".delora_B", "delora_B", "DeLoRA"},
    {".delora_lambda", "delora_lambda", "DeLoRA"},
    {".delora_w_norm", "delora_w_norm", "DeLoRA"},
    {".diff", "diff", "whole differences"},
    {".diff_b", "diff_b", "biases"},
    {".set_weight", "set_weight", "whole weights"},
    {".w_norm", "w_norm", "norms"},
    {".b_norm", "b_norm", "norms"},
};

// xlabs', of its attention processors alone; elsewhere they could end anything.
constexpr Ending kProcessorEndings[] = {{".down.weight", "down", "LoRA"},
                                        {".up.weight", "up", "LoRA"}};

struct Prefix {
  const char* text;
  Naming naming;
  const char* model;
};

constexpr Prefix kPrefixes[] = {
    {"lora_unet_", Naming::kohya, "unet"},
    {"lora_te1_", Naming::kohya, "text_encoder"},
    {"lora_te2_", Naming::kohya, "text_encoder_2"},
    {"lora_te3_", Naming::kohya, "text_encoder_3"},
    {"lora_te_", Naming::kohya, "text_encoder"},
    {"lora_transformer_", Naming::kohya, "transformer"},
    {"lycoris_", Naming::kohya, "unet"},
    {"unet.unet.", Naming::diffusers_doubled, "unet"},
    {"unet.", Naming::diffusers, "unet"},
    {"text_encoder_2.", Naming::diffusers, "text_encoder_2"},
    {"text_encoder.", Naming::diffusers, "text_encoder"},
    {"text_encoder_3.", Naming::diffusers, "text_encoder_3"},
    {"text_conditioner.", Naming::diffusers, "text_conditioner"},
    {"transformer.", Naming::diffusers, "transformer"},
    {"base_model.", Naming::peft, ""},
    {"text_encoders.", Naming::original, "text_encoder"},
    {"diffusion_model.", Naming::original, "unet"},
};

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() > end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_original_block(std::string_view layer) {
  for (const char* block :
       {"input_blocks_", "middle_block_", "output_blocks_", "label_emb_", "time_embed_"}) {
    if (starts_with(layer, std::string("lora_unet_") + block)) return true;
  }
  return layer == "lora_unet_out_2";
}

const Ending* find_ending(std::string_view name) {
  const bool xlabs = name.find(".processor.qkv_lora") != name.npos ||
                     name.find(".processor.proj_lora") != name.npos;
  for (const auto& ending : kProcessorEndings) {
    if (xlabs && ends_with(name, ending.text)) return &ending;
  }
  for (const auto& ending : kEndings) {
    if (ends_with(name, ending.text)) return &ending;
  }
  return nullptr;
}

// Parts of names that one kind of model alone has.
struct Mark {
  const char *text, *family;
};

constexpr Mark kMarks[] = {
    {"double_blocks", "FLUX"},         {"single_transformer_blocks", "FLUX"},
    {"joint_blocks", "SD 3"},          {"context_refiner", "Z-Image"},
    {"noise_refiner", "Z-Image"},      {"llm_adapter", "Anima"},
    {"img_mod", "Qwen-Image"},         {"txt_mlp", "Qwen-Image"},
    {"double_stream_modul", "FLUX.2"}, {"lora_te3_", "SD 3"},
};

}  // namespace

std::string describe(Naming naming) {
  switch (naming) {
    case Naming::kohya:
      return "kohya";
    case Naming::kohya_original:
      return "kohya with the original block names";
    case Naming::diffusers:
      return "diffusers";
    case Naming::diffusers_doubled:
      return "diffusers 0.22 to 0.24, with unet. doubled";
    case Naming::bare:
      return "diffusers up to 0.15, without a prefix";
    case Naming::peft:
      return "PEFT";
    case Naming::original:
      return "the original names, as ComfyUI writes them";
    case Naming::native:
      break;
  }
  return "lightlora, native";
}

std::optional<TensorName> parse_name(const std::string& name) {
  const auto* ending = find_ending(name);
  if (!ending) return std::nullopt;
  TensorName result;
  result.name = name;
  result.part = ending->part;
  result.ending = ending->text;
  result.method = ending->method;
  result.layer = name.substr(0, name.size() - result.ending.size());
  result.naming = Naming::bare;
  for (const auto& prefix : kPrefixes) {
    if (!starts_with(name, prefix.text)) continue;
    result.naming = prefix.naming;
    result.model = prefix.model;
    break;
  }
  if (result.naming == Naming::kohya && is_original_block(result.layer)) {
    result.naming = Naming::kohya_original;
  }
  // A single word without a prefix could be anything, unless some model has a layer of that name.
  if (result.naming == Naming::bare && result.layer.find('.') == std::string::npos &&
      places_of(result.layer).empty()) {
    return std::nullopt;
  }
  return result;
}

std::vector<std::string> families_of(const std::vector<TensorName>& names,
                                     const std::map<std::string, int64_t>& widths) {
  std::set<std::string> found;
  const auto has = [&](std::initializer_list<const char*> texts) {
    return std::any_of(names.begin(), names.end(), [&](const TensorName& name) {
      return std::all_of(texts.begin(), texts.end(), [&](const char* text) {
        return name.layer.find(text) != std::string::npos;
      });
    });
  };
  for (const auto& mark : kMarks) {
    if (has({mark.text})) found.insert(mark.family);
  }
  if (!found.empty()) return {found.begin(), found.end()};
  for (const auto& [layer, width] : widths) {
    const bool context = layer.find("attn2") != std::string::npos &&
                         (ends_with(layer, "to_k") || ends_with(layer, "to_v"));
    const bool of_unet = layer.find("down_blocks") != std::string::npos ||
                         layer.find("up_blocks") != std::string::npos ||
                         layer.find("mid_block") != std::string::npos ||
                         layer.find("put_blocks") != std::string::npos ||
                         layer.find("middle_block") != std::string::npos;
    if (context && of_unet) {
      found.insert(width == 768    ? "SD 1.x"
                   : width == 1024 ? "SD 2.x"
                   : width == 2048 ? "SDXL"
                                   : "");
    }
    if (layer.find("add_q_proj") == std::string::npos) continue;
    found.insert(width == 3072 ? "Qwen-Image" : "SD 3");
  }
  found.erase("");
  if (found.empty() && has({"blocks", "self_attn", "q_proj"})) found.insert("Anima");
  if (found.empty() && has({"blocks", "cross_attn"})) found.insert("Wan");
  if (found.empty() && has({"layers", "attention", "to_q"})) found.insert("Z-Image");
  if (found.empty() && has({"transformer.blocks.", "attn1"})) found.insert("Wan");
  if (found.empty() && has({"transformer.transformer_blocks.", "attn1"})) found.insert("LTX");
  if (found.empty() && has({"block"})) return {"SD 1.x", "SD 2.x", "SDXL"};
  return {found.begin(), found.end()};
}

}  // namespace lora_files
