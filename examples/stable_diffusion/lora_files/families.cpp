// SPDX-License-Identifier: Apache-2.0
#include "lora_files/families.h"

#include <c10/util/Exception.h>

#include <string_view>
#include <utility>

#include "lora_files/family_tables.h"

namespace lora_files {
namespace {

// "a.{b,c}" as a.b and a.c; `text` is left at what ends the name.
std::vector<std::string> unfold(std::string_view& text, std::string name) {
  while (!text.empty() && text[0] != ',' && text[0] != '}') {
    const char c = text[0];
    text.remove_prefix(1);
    if (c != '{') {
      name += c;
      continue;
    }
    std::vector<std::string> all;
    for (bool more = true; more; text.remove_prefix(1)) {
      for (auto& each : unfold(text, name)) all.push_back(std::move(each));
      more = !text.empty() && text[0] == ',';
      TORCH_CHECK(more || (!text.empty() && text[0] == '}'), "expected '}' in a table of names");
    }
    return all;
  }
  return {std::move(name)};
}

std::vector<std::string> unfold(std::string_view text) { return unfold(text, ""); }

std::vector<LayerKind> kinds_of(const std::vector<LayerPair>& pairs) {
  std::vector<LayerKind> kinds;
  for (const auto& pair : pairs) {
    const auto originals = unfold(pair.original);
    const auto others = unfold(pair.diffusers);
    const bool fused = pair.rows == Rows::equal_parts || pair.rows == Rows::qkv_mlp;
    if (fused) {
      kinds.push_back({originals.at(0), others, pair.rows, pair.ratio, pair.alias});
      continue;
    }
    TORCH_CHECK(originals.size() == others.size(), "'", pair.original,
                "': expected as many names of diffusers, got ", others.size(), " for ",
                originals.size());
    for (size_t i = 0; i < others.size(); ++i) {
      kinds.push_back({originals[i], {others[i]}, pair.rows, pair.ratio, pair.alias});
    }
  }
  return kinds;
}

Component transformer(const std::vector<LayerPair>& pairs) {
  return {"lora_unet_", "diffusion_model.", "transformer.", kinds_of(pairs)};
}

Component clip(const char* kohya, const char* name, const char* diffusers) {
  return {kohya, std::string("text_encoders.") + name + ".transformer.", diffusers,
          kinds_of(kClip)};
}

Component t5(const char* diffusers) {
  return {"lora_te3_", "text_encoders.t5xxl.transformer.", diffusers, kinds_of(kT5)};
}

// Language models of which ComfyUI alone reads adapters in a file of the whole pipeline: diffusers'
// pipelines pass over them, and musubi-tuner trains the transformer alone. sd-scripts trains Anima's.
Component language_model(const char* comfyui, const std::vector<LayerPair>& pairs,
                         const char* kohya = "") {
  std::vector<std::string> formats{"comfyui", "peft"};
  if (*kohya != '\0') formats.emplace_back("kohya");
  return {kohya, std::string("text_encoders.") + comfyui, "text_encoder.", kinds_of(pairs),
          formats};
}

std::vector<Family> all() {
  Family flux{
      "FLUX.1",
      {"FluxTransformer2DModel"},
      {3072},
      {transformer(kFlux1), clip("lora_te1_", "clip_l", "text_encoder."), t5("text_encoder_2.")}};
  flux.comfyui_down_up = true;
  flux.ai_toolkit = AiToolkit::diffusers;
  Family sd3{"SD 3",
             {"SD3Transformer2DModel"},
             {1536, 2432},
             {transformer(kSd3), clip("lora_te1_", "clip_l", "text_encoder."),
              clip("lora_te2_", "clip_g", "text_encoder_2."), t5("text_encoder_3.")}};
  sd3.ai_toolkit = AiToolkit::diffusers;
  Family z{"Z-Image",
           {"ZImageTransformer2DModel"},
           {3840},
           {transformer(kZImage), language_model("qwen3_4b.transformer.model.", kQwen3)}};
  z.ai_toolkit = AiToolkit::mixed;
  z.musubi_original = false;
  return {
      std::move(flux),
      std::move(sd3),
      {"Wan",
       {"WanTransformer3DModel", "WanVACETransformer3DModel"},
       {1536, 3072, 5120},
       {transformer(kWan), language_model("umt5xxl.transformer.", kT5)}},
      {"Qwen-Image",
       {"QwenImageTransformer2DModel"},
       {3072},
       {transformer(kQwenImage), language_model("qwen25_7b.transformer.", kQwenVL)}},
      std::move(z),
      {"LTX",
       {"LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"},
       {2048, 4096},
       {transformer(kLtx)}},
      {"FLUX.2", {"Flux2Transformer2DModel"}, {3072, 4096, 6144}, {transformer(kFlux2)}},
      {"Anima",
       {"CosmosTransformer3DModel"},
       {2048},
       {transformer(kAnima),
        {"lora_unet_llm_adapter_", "diffusion_model.llm_adapter.", "text_conditioner.",
         kinds_of(kAnimaText)},
        language_model("qwen3_06b.transformer.model.", kQwen3, "lora_te_")}},
  };
}

}  // namespace

const std::vector<Family>& families() {
  static const std::vector<Family> known = all();
  return known;
}

}  // namespace lora_files
