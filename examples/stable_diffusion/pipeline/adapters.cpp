// SPDX-License-Identifier: Apache-2.0
#include "pipeline/adapters.h"

namespace sd {

std::vector<lightlora::Patched> PipelineAdapters::all() const {
  std::vector<lightlora::Patched> models;
  for (const auto& model : {unet, text_encoder}) {
    if (model) models.push_back(model);
  }
  return models;
}

lightlora::Components PipelineAdapters::state() const {
  lightlora::Components state;
  if (unet) state["unet"] = unet->state();
  if (text_encoder) state["text_encoder"] = text_encoder->state();
  return state;
}

void PipelineAdapters::assign(const lightlora::Components& state) const {
  const auto put = [&](const lightlora::Patched& model, const char* component) {
    const auto found = state.find(component);
    TORCH_CHECK(model || found == state.end(), "expected no adapters of the ", component,
                ", got some; hint: were they trained with --train_text_encoder?");
    if (!model) return;
    TORCH_CHECK(found != state.end(), "expected adapters of the ", component,
                ", got none; hint: were they trained with --train_text_encoder?");
    model->assign(found->second);
  };
  put(unet, "unet");
  put(text_encoder, "text_encoder");
}

}  // namespace sd
