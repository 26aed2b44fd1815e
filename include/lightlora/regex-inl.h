// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/linear_regex.h>
#include <lightlora/regex.h>

#include <c10/util/Exception.h>

#include <memory>

namespace lightlora {

// The readers' own matcher, not std::regex: an expression may come from a file, and std::regex takes
// exponential time over some, and more time to compile.
LIGHTLORA_INLINE Pattern matches(const std::string& expression) {
  std::shared_ptr<const detail::LinearRegex> compiled;
  try {
    compiled = std::make_shared<const detail::LinearRegex>(expression);
  } catch (const detail::RegexError& error) {
    TORCH_CHECK_VALUE(false, "'", expression, "': ", error.what());
  }
  return Pattern("regex " + expression,
                 [compiled](const std::string& path) { return compiled->matches(path); });
}

}  // namespace lightlora
