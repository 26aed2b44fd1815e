// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <torch/serialize/archive.h>

#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// Lets `torch::save(lora, path)` write the trained values of every set of a patched model.
/// Safetensors files (`lightlora::save`) also hold the options, and so can be loaded into a bare
/// model; this is for programs that keep everything in LibTorch's own archives.
inline torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                                   const Patched& lora) {
  for (const auto& name : lora->sets()) {
    torch::serialize::OutputArchive set(archive.compilation_unit());
    int64_t index = 0;
    for (const auto& item : lora->named_parameters(name)) {
      set.write(std::to_string(index++), item.value());
    }
    archive.write(name, set);
  }
  return archive;
}

/// Lets `torch::load(lora, path)` read them back into a model that is patched in the same way.
/// Errors: c10::Error, before anything has changed, if a set is missing or a tensor has another shape
inline torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                  Patched& lora) {
  torch::NoGradGuard no_grad;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> values;
  for (const auto& name : lora->sets()) {
    torch::serialize::InputArchive set;
    TORCH_CHECK(archive.try_read(name, set), "lightlora: expected the adapter set '", name,
                "' in the archive, got none; hint: patch with the names that were saved");
    int64_t index = 0;
    for (const auto& item : lora->named_parameters(name)) {
      torch::Tensor value;
      TORCH_CHECK(set.try_read(std::to_string(index++), value) &&
                      value.sizes() == item.value().sizes(),
                  "lightlora: '", item.key(), "': expected a tensor ", item.value().sizes(),
                  " in the archive, got another or none; hint: patch with the options and targets ",
                  "that were saved");
      values.emplace_back(item.value(), value);
    }
  }
  for (auto& [own, value] : values) own.copy_(value);
  return archive;
}

}  // namespace lightlora
