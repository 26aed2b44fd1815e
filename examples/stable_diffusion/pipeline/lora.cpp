// SPDX-License-Identifier: Apache-2.0
#include "pipeline/lora.h"

#include <lightlora/combine.h>
#include <lightlora/files.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <utility>

namespace sd {

namespace {

// A file that is chosen twice makes two sets.
std::string set_name(const lightlora::Patched& handle, const std::string& path) {
  std::string name = path;
  for (const auto& taken : handle ? handle->sets() : std::vector<std::string>()) {
    if (taken == name) name += " again";
  }
  return name;
}

// Adds one file's adapters to a model's handle, and makes the handle if there is none.
void add(lightlora::Patched& handle, torch::nn::Module& model, const LoRAChoice& choice,
         const lightlora::AdapterState& state, std::map<std::string, double>& weights) {
  const std::string name = set_name(handle, choice.path);
  weights[name] = choice.weight;
  try {
    if (handle) {
      handle->add(name, state);
    } else {
      handle = lightlora::patch(model, state, name);
    }
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", choice.path, "': ", error.what_without_backtrace());
  }
}

void merge(const lightlora::Patched& handle, const std::map<std::string, double>& weights) {
  if (!handle) return;
  handle->set_active(weights);
  handle->merge(/*safe=*/true);
}

// What people call a family.
std::string shown_family(const std::string& family) {
  if (family == "sdxl") return "SDXL";
  return family == "sd2" ? "Stable Diffusion 2.x" : "Stable Diffusion 1.x";
}

// The family that a pipeline is of, by the width of the text that its UNet reads; empty for others.
std::string family_of(const StableDiffusion& pipeline) {
  if (pipeline.is_sdxl()) return "sdxl";
  const int64_t width = pipeline.unet()->options.cross_attention_dim().front();
  return width == 768 ? "sd1" : width == 1024 ? "sd2" : "";
}

// The likely cause comes before a list of layers that do not fit; some would even fit, as SDXL's
// first text encoder is that of 1.x.
void check_family(const std::string& path, const lightlora::Components& components,
                  const StableDiffusion& pipeline) {
  const auto own = lightlora::model_family(components), model = family_of(pipeline);
  const bool fits = own.empty() || own == model || (model.empty() && own != "sdxl");
  TORCH_CHECK(fits, "'", path, "': expected a LoRA for ",
              model.empty() ? "a smaller model" : shown_family(model), ", which '",
              pipeline.folder(), "' is, got one for ", shown_family(own),
              "; hint: a LoRA draws with models of the family that it was trained on");
}

void add_all(PipelineAdapters& adapters, StableDiffusion& pipeline, const LoRAChoice& choice,
             const lightlora::Components& components,
             std::map<std::string, std::map<std::string, double>>& weights) {
  for (const auto& [component, state] : components) {
    auto& own = weights[component];
    if (component == "unet") {
      add(adapters.unet, *pipeline.unet(), choice, state, own);
    } else if (component == "text_encoder") {
      add(adapters.text_encoder, *pipeline.text_encoder(), choice, state, own);
    } else if (component == "text_encoder_2" && pipeline.text_encoders() == 2) {
      add(adapters.text_encoder_2, *pipeline.text_encoder(1), choice, state, own);
    } else {
      TORCH_CHECK(false, "'", choice.path,
                  "': expected adapters for unet or text_encoder, got some for '", component,
                  "'; hint: the file belongs to another kind of model");
    }
  }
}

}  // namespace

LoRAChoice parse_lora(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) return {text, 1.0};
  char* end = nullptr;
  const double weight = std::strtod(text.c_str() + colon + 1, &end);
  if (*end != '\0' || !std::isfinite(weight)) return {text, 1.0};
  return {text.substr(0, colon), weight};
}

PipelineAdapters merge_loras(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
                             std::optional<int64_t> split_rank) {
  PipelineAdapters adapters;
  std::map<std::string, std::map<std::string, double>> weights;
  const auto options =
      lightlora::ReadOptions().allow_trailing_bytes(pipeline.options().allow_trailing_bytes());
  for (const auto& choice : choices) {
    auto components = lightlora::read_adapters(choice.path, options).components;
    check_family(choice.path, components, pipeline);
    for (auto& [component, state] : components) {
      if (split_rank) state = lightlora::cut(state, lightlora::Keep::rank(*split_rank));
    }
    add_all(adapters, pipeline, choice, components, weights);
  }
  for (const auto& [component, model] : adapters.by_component()) merge(model, weights[component]);
  return adapters;
}

void set_lora_weight(const PipelineAdapters& adapters, double weight) {
  for (const auto& model : adapters.all()) {
    std::map<std::string, double> weights;
    for (const auto& set : model->sets()) weights[set] = weight;
    model->unmerge();
    merge(model, weights);
  }
}

}  // namespace sd
