// SPDX-License-Identifier: Apache-2.0
#include "pipeline/adapters.h"

namespace sd {

std::vector<std::pair<std::string, lightlora::Patched>> PipelineAdapters::by_component() const {
  return {{"unet", unet}, {"text_encoder", text_encoder}, {"text_encoder_2", text_encoder_2}};
}

std::vector<lightlora::Patched> PipelineAdapters::all() const {
  std::vector<lightlora::Patched> models;
  for (const auto& [name, model] : by_component()) {
    if (model) models.push_back(model);
  }
  return models;
}

lightlora::Components PipelineAdapters::state() const {
  lightlora::Components state;
  for (const auto& [name, model] : by_component()) {
    if (model) state[name] = model->state();
  }
  return state;
}

void PipelineAdapters::assign(const lightlora::Components& state) const {
  for (const auto& [name, model] : by_component()) {
    const auto found = state.find(name);
    TORCH_CHECK(model || found == state.end(), "expected no adapters of the ", name,
                ", got some; hint: were they trained with --train_text_encoder?");
    if (!model) continue;
    TORCH_CHECK(found != state.end(), "expected adapters of the ", name,
                ", got none; hint: were they trained with --train_text_encoder?");
    model->assign(found->second);
  }
}

}  // namespace sd
