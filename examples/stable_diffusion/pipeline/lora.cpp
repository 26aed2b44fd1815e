// SPDX-License-Identifier: Apache-2.0
#include "pipeline/lora.h"

#include <lightlora/combine.h>
#include <lightlora/files.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <utility>

#include "support/files/limits.h"

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
void add(lightlora::Patched& handle, torch::nn::Module& model, const std::string& component,
         const LoRAChoice& choice, const lightlora::AdapterState& state,
         std::map<std::string, double>& weights) {
  const std::string name = set_name(handle, choice.path);
  weights[name] = choice.weight_of(component);
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
      add(adapters.unet, *pipeline.unet(), component, choice, state, own);
    } else if (component == "text_encoder") {
      add(adapters.text_encoder, *pipeline.text_encoder(), component, choice, state, own);
    } else if (component == "text_encoder_2" && pipeline.text_encoders() == 2) {
      add(adapters.text_encoder_2, *pipeline.text_encoder(1), component, choice, state, own);
    } else {
      TORCH_CHECK(false, "'", choice.path,
                  "': expected adapters for unet or text_encoder, got some for '", component,
                  "'; hint: the file belongs to another kind of model");
    }
  }
}

}  // namespace

LoRAChoice parse_lora(const std::string& text) {
  if (limits::exists(text)) return {text, 1.0};
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) return {text, 1.0};
  char* end = nullptr;
  const double weight = std::strtod(text.c_str() + colon + 1, &end);
  if (*end != '\0' || !std::isfinite(weight)) return {text, 1.0};
  return {text.substr(0, colon), weight};
}

AppliedLoRAs::AppliedLoRAs(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
                           std::optional<int64_t> split_rank, bool changes)
    : beside_(at::isReducedFloatingType(pipeline.options().dtype())), changes_(changes) {
  const auto options =
      lightlora::ReadOptions().allow_trailing_bytes(pipeline.options().allow_trailing_bytes());
  for (const auto& choice : choices) {
    const auto contents = lightlora::read_adapters(choice.path, options);
    if (!contents.ignored.empty()) {
      TORCH_WARN(
          "'", choice.path, "': ", contents.ignored.size(), " of ", contents.tensors,
          " tensors are not used, as no adapter can hold them (biases and norms), the first ",
          "is '", contents.ignored.front(), "'");
    }
    const auto& seen = with_embeddings_;
    const bool again = std::find(seen.begin(), seen.end(), choice.path) != seen.end();
    if (!contents.embeddings.empty() && !again) with_embeddings_.push_back(choice.path);
    auto components = contents.components;
    check_family(choice.path, components, pipeline);
    for (auto& [component, state] : components) {
      if (split_rank) state = lightlora::cut(state, lightlora::Keep::rank(*split_rank));
    }
    add_all(adapters_, pipeline, choice, components, weights_);
  }
  if (beside_) {
    for (const auto& model : adapters_.all()) model->eval();
  }
  on();
}

void AppliedLoRAs::merge() const {
  for (const auto& model : adapters_.all()) model->merge(/*safe=*/true);
}

void AppliedLoRAs::on() {
  for (const auto& [component, model] : adapters_.by_component()) {
    if (model) model->set_active(weights_.at(component));
  }
  if (!beside_ && changes_) return merge();
  if (!beside_) {
    for (const auto& model : adapters_.all()) model->merge_and_unload(/*safe=*/true);
    adapters_ = {};
    return;
  }
  for (const auto& model : adapters_.all()) active_.push_back(model->activate());
}

void AppliedLoRAs::off() {
  active_.clear();
  for (const auto& model : adapters_.all()) {
    if (model->merged()) model->unmerge();
  }
}

void AppliedLoRAs::set_weight(double weight) {
  TORCH_CHECK(beside_ || changes_,
              "expected LoRA files whose weight may change, got some that have ",
              "become a part of the model; hint: AppliedLoRAs(..., /*changes=*/true)");
  off();
  for (auto& component : weights_) {
    for (auto& set : component.second) set.second = weight;
  }
  on();
}

void AppliedLoRAs::while_merged(const std::function<void()>& use) {
  if (!beside_) return use();
  off();
  merge();
  use();
  off();
  on();
}

}  // namespace sd
