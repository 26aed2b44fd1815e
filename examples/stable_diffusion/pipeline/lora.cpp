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
  std::map<std::string, double> unet_weights, text_encoder_weights;
  const auto options =
      lightlora::ReadOptions().allow_trailing_bytes(pipeline.options().allow_trailing_bytes());
  for (const auto& choice : choices) {
    const auto contents = lightlora::read_adapters(choice.path, options);
    for (const auto& [component, read] : contents.components) {
      const auto state =
          split_rank ? lightlora::cut(read, lightlora::Keep::rank(*split_rank)) : read;
      if (component == "unet") {
        add(adapters.unet, *pipeline.unet(), choice, state, unet_weights);
      } else if (component == "text_encoder") {
        add(adapters.text_encoder, *pipeline.text_encoder(), choice, state, text_encoder_weights);
      } else {
        TORCH_CHECK(false, "'", choice.path,
                    "': expected adapters for unet or text_encoder, got some for '", component,
                    "'; hint: the file belongs to another kind of model");
      }
    }
  }
  merge(adapters.unet, unet_weights);
  merge(adapters.text_encoder, text_encoder_weights);
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
