// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string>

#include "support/cli/fmt.h"

namespace lora_files {

/// "4" or "4 to 16", with the six digits that streams show too; "none" without values.
template <typename Value>
std::string range_text(const std::set<Value>& values) {
  if (values.empty()) return "none";
  const auto text = [](Value value) { return fmt::format("{:.6g}", static_cast<double>(value)); };
  const auto least = text(*values.begin());
  return values.size() > 1 ? fmt::format("{} to {}", least, text(*values.rbegin())) : least;
}

}  // namespace lora_files
