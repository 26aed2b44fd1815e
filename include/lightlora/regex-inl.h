// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/regex.h>

#include <c10/util/Exception.h>

#include <regex>
#include <utility>

namespace lightlora {

LIGHTLORA_INLINE Pattern matches(const std::string& expression) {
  std::regex compiled;
  try {
    compiled.assign(expression);
  } catch (const std::regex_error& error) {
    TORCH_CHECK_VALUE(false, "'", expression,
                      "': expected a regular expression, got one with an error: ", error.what());
  }
  return Pattern("regex " + expression, [compiled = std::move(compiled)](const std::string& path) {
    return std::regex_match(path, compiled);
  });
}

}  // namespace lightlora
