// SPDX-License-Identifier: Apache-2.0
#include "training/captions.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace training {

void PromptStates::prepare(const std::vector<std::string>& texts) {
  if (trains_) return;
  const torch::NoGradGuard no_grad;
  for (const auto& text : texts) {
    auto& kept = kept_[text];
    if (kept.states.defined()) continue;
    TORCH_CHECK(encode_, "expected only prompts that were encoded before, got '", text, "'");
    kept = encode_({text});
  }
}

sd::PromptEmbeds PromptStates::states(const std::vector<std::string>& texts) {
  if (trains_) return encode_(texts);
  prepare(texts);
  std::vector<torch::Tensor> states, pooled;
  for (const auto& text : texts) {
    const auto& kept = kept_.at(text);
    states.push_back(kept.states);
    if (kept.pooled.defined()) pooled.push_back(kept.pooled);
  }
  return {at::cat(states), pooled.empty() ? torch::Tensor() : at::cat(pooled)};
}

namespace {

// %: where the word goes.
const char* const kObjectTemplates[] = {
    "a photo of %",           "a photo of a %",        "a photo of the %",
    "a photo of one %",       "a photo of my %",       "a picture of %",
    "a picture of a %",       "a close-up photo of %", "a close-up photo of a %",
    "a cropped photo of a %", "a bright photo of a %", "a dark photo of the %",
    "a good photo of %",      "a clear photo of a %",  "a photo of a clean %",
    "a photo of a small %",   "a photo of a large %",  "a photo of a nice %",
    "a rendering of a %",     "a depiction of %",      "a snapshot of a %",
};

const char* const kStyleTemplates[] = {
    "a painting in the style of %",          "a picture in the style of %",
    "a rendering in the style of %",         "a drawing in the style of %",
    "a small painting in the style of %",    "a large painting in the style of %",
    "a bright painting in the style of %",   "a dark painting in the style of %",
    "a clean painting in the style of %",    "a cropped painting in the style of %",
    "a close-up painting in the style of %", "a fine picture in the style of %",
};

}  // namespace

std::vector<std::string> caption_templates(Property property, const std::string& word) {
  std::vector<std::string> captions;
  const auto add = [&](std::string text) {
    captions.push_back(text.replace(text.find('%'), 1, word));
  };
  if (property == Property::object) {
    for (const auto* text : kObjectTemplates) add(text);
  } else {
    for (const auto* text : kStyleTemplates) add(text);
  }
  return captions;
}

}  // namespace training
