// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <algorithm>

#include "lora_files/translate.h"

namespace lora_files {

const std::vector<std::string>& transformer_formats() {
  static const std::vector<std::string> formats{"diffusers", "peft",       "kohya", "comfyui",
                                                "musubi",    "ai-toolkit", "bfl"};
  return formats;
}

Spelling spelling_of(const std::string& format, const Family& family) {
  Spelling spelling;
  if (format == "diffusers" || format == "peft") {
    spelling.original = false;
    spelling.peft = format == "peft";
  } else if (format == "kohya" || format == "musubi") {
    spelling.flat = spelling.down_up = true;
    spelling.original = format == "kohya" || family.musubi_original;
  } else if (format == "comfyui") {
    spelling.comfyui = true;
    spelling.down_up = family.comfyui_down_up;
  } else if (format == "ai-toolkit") {
    spelling.original = family.ai_toolkit == AiToolkit::comfyui;
    spelling.comfyui = family.ai_toolkit != AiToolkit::diffusers;
  } else {
    const bool of_bfl = family.name == "FLUX.1" || family.name == "FLUX.2";
    TORCH_CHECK(format == "bfl" && of_bfl,
                "--to: expected diffusers, peft, kohya, comfyui, musubi ",
                "or ai-toolkit for a LoRA of ", family.name, ", got ", format);
    spelling.bare = true;
  }
  return spelling;
}

std::string spelled(const Spelling& spelling, const Family& family, const Place& place) {
  const auto& component = family.components.at(static_cast<size_t>(place.component));
  const std::string name =
      spelling.original ? original_name(family, place) : diffusers_name(family, place);
  if (spelling.peft) return "base_model.model." + name;
  if (spelling.bare && place.component == 0) return name;
  if (!spelling.flat) {
    const bool theirs = spelling.comfyui || spelling.original;
    return (theirs ? component.comfyui : component.diffusers) + name;
  }
  std::string flat = name;
  std::replace(flat.begin(), flat.end(), '.', '_');
  return component.kohya + flat;
}

bool turns(const LayerKind& kind, const LayerValues& values) {
  if (kind.rows == Rows::halves) return true;
  // Six parts, or three, are in one order on both sides; two are what the last block has.
  return kind.rows == Rows::last_halves && values.in() > 0 && values.out() == 2 * values.in();
}

}  // namespace lora_files
