// SPDX-License-Identifier: Apache-2.0
// Files of adapters for the tests of dialects, and what is read from them.
#pragma once

#include <lightlora/lightlora.h>

#include <string>
#include <vector>

#include "spellings.h"
#include "support.h"

namespace dialect_files {

using namespace lightlora;
using namespace spellings;

inline LayerState find(const Components& components, const Layer& layer) {
  INFO(layer.component << " " << layer.name);
  REQUIRE(components.count(layer.component));
  for (const auto& state : components.at(layer.component)) {
    if (state.layer.name == layer.name) return state;
  }
  FAIL("no such layer");
  return {};
}

inline void check_deltas(const Components& components, const std::vector<Layer>& layers,
                         double scale = 1) {
  std::size_t count = 0;
  for (const auto& item : components) count += item.second.size();
  CHECK(count == layers.size());
  for (const auto& layer : layers) {
    const auto adapter = make_adapter(find(components, layer));
    const auto expected = layer.up.flatten(1).mm(layer.down.flatten(1)) * scale;
    CHECK(close(adapter->delta(), expected, 1e-6));  // the same fp32 values
  }
}

class Files {
 public:
  Components read(const TensorMap& tensors, const Metadata& metadata = {}) {
    const std::string path = folder_.file("lora.safetensors");
    save_safetensors(path, tensors, metadata);
    return read_adapters(path).components;
  }
  std::string error(const TensorMap& tensors, const Metadata& metadata = {}) {
    try {
      read(tensors, metadata);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  }
  const ScratchFolder& folder() const { return folder_; }

 private:
  ScratchFolder folder_;
};

inline TensorMap kohya_file() {
  return spelled(attention_layers(), dialects().at("kohya lora_te_"));
}

}  // namespace dialect_files
