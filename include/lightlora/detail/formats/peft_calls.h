// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/state.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

// PEFT computes an adapter's part by a call of its own beside the layer's, unless it is merged, and
// takes over some options of the layer only.

namespace lightlora::detail {

/// Errors: c10::Error for a layer that PEFT's method of this "peft_type" would compute otherwise, or
/// not at all
inline void require_peft_calls(const std::string& type, const AdapterState& state) {
  // Of PEFT 0.21.2; methods that are not here have Linear layers only. LoRA's down factor is a
  // convolution with the layer's kernel, stride and padding, or a table that max_norm shortens in
  // place; BOFT's call takes the first number of stride and padding.
  static const std::map<std::string, std::vector<std::string>> lost{
      {"LORA", {"padding_mode", "dilation", "max_norm"}},
      {"LOHA", {"padding_mode"}},
      {"LOKR", {"padding_mode"}},
      {"ADALORA", {"padding_mode"}},
      {"BOFT", {"padding_mode", "dilation", "stride", "padding"}}};
  const auto found = lost.find(type);
  if (found == lost.end()) return;
  for (const auto& layer : state) {
    const auto& own = layer.layer.uncommon;
    for (const auto& option : found->second) {
      TORCH_CHECK(std::find(own.begin(), own.end(), option) == own.end(), "'", layer.layer.name,
                  "': expected a layer that PEFT's ", type, " computes alike, got one whose ",
                  option, " it does not take over; hint: write the native format, or leave the ",
                  "layer out of the targets");
    }
  }
}

/// An embedding's down factor without a part in its padding row, which PEFT's sum changes as any
/// other row.
inline at::Tensor without_padding_row(const at::Tensor& down, int64_t row) {
  if (row < 0) return down;
  return down.index_fill(1, at::tensor({row}, at::kLong), 0);
}

}  // namespace lightlora::detail
