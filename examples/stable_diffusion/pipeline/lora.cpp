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

// Adds one file's adapters to a model's handle, and makes the handle if there is none.
void add(lightlora::Patched& handle, torch::nn::Module& model, const std::string& name,
         const lightlora::AdapterState& state, const std::string& path) {
  try {
    if (handle) {
      handle->add(name, state);
    } else {
      handle = lightlora::patch(model, state, name);
    }
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
}

void merge(lightlora::Patched& handle, const std::map<std::string, double>& weights) {
  if (!handle) return;
  std::map<std::string, double> own;
  for (const auto& name : handle->active()) own[name.first] = weights.at(name.first);
  handle->set_active(own);
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

LoadedLoRAs merge_loras(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
                        std::optional<int64_t> split_rank) {
  LoadedLoRAs loaded;
  std::map<std::string, double> weights;
  const auto options = lightlora::ReadOptions().allow_trailing_bytes(
      pipeline.options().allow_trailing_bytes());
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const auto& [path, weight] = choices[i];
    const std::string name = std::to_string(i) + " " + path;
    weights[name] = weight;
    auto contents = lightlora::read_adapters(path, options);
    for (auto& [component, state] : contents.components) {
      const auto adapters = split_rank ? lightlora::cut(state, lightlora::Keep::rank(*split_rank)) : state;
      if (component == "unet") {
        add(loaded.unet, *pipeline.unet(), name, adapters, path);
      } else if (component == "text_encoder") {
        add(loaded.text_encoder, *pipeline.text_encoder(), name, adapters, path);
      } else {
        TORCH_CHECK(false, "'", path,
                    "': expected adapters for unet or text_encoder, got some for '", component,
                    "'; hint: the file belongs to another kind of model");
      }
    }
  }
  merge(loaded.unet, weights);
  merge(loaded.text_encoder, weights);
  return loaded;
}

void set_lora_weights(LoadedLoRAs& loaded, const std::vector<double>& weights) {
  for (auto* handle : {&loaded.unet, &loaded.text_encoder}) {
    if (!*handle) continue;
    std::map<std::string, double> by_name;
    for (const auto& active : (*handle)->active()) {
      by_name[active.first] = weights.at(std::stoul(active.first));  // names begin with their index
    }
    (*handle)->unmerge();
    merge(*handle, by_name);
  }
}

}  // namespace sd
