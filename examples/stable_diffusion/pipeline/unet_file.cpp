// SPDX-License-Identifier: Apache-2.0
#include "pipeline/unet_file.h"

#include <algorithm>
#include <map>

#include "models/ldm_names.h"

namespace sd {
namespace {

bool begins_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

// What all names of a UNet begin with in this file.
std::string beginning_in(const lightlora::TensorFile& file) {
  for (const std::string start : {kLdmUnet, "unet."}) {
    const auto& tensors = file.tensors();
    const bool some = std::any_of(tensors.begin(), tensors.end(), [&](const auto& tensor) {
      return begins_with(tensor.name, start);
    });
    if (some) return start;
  }
  return "";
}

}  // namespace

void load_unet_file(UNet2DConditionModelImpl& unet, const std::string& path,
                    const UNet2DConditionModelOptions& options,
                    const lightlora::SafetensorsOptions& file_options,
                    const BeforeFilling& before_filling) {
  const auto file = lightlora::open_tensors(path, file_options);
  const std::string start = beginning_in(*file);
  const bool original = file->contains(start + "input_blocks.0.0.weight");
  std::map<std::string, std::string> ours;
  for (const auto& item : unet.named_parameters()) {
    ours[original ? ldm_unet_name(item.key(), options) : item.key()] = item.key();
  }
  const auto rename = [&](const std::string& name) -> std::string {
    if (!begins_with(name, start)) return "";  // of another part
    const auto known = ours.find(name.substr(start.size()));
    return known == ours.end() ? name : known->second;
  };
  load_weights(unet, path, rename, file_options, before_filling);
}

}  // namespace sd
