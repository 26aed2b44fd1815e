// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the regular expressions of PEFT's configurations: the first line is the
// expression, the rest a name; see run.sh.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <lightlora/detail/formats/linear_regex.h>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto end = text.find('\n');
  try {
    const lightlora::detail::LinearRegex regex(text.substr(0, end));
    fuzz::demand(regex.steps() <= 10'000, "an expression has a size");
    if (end != text.npos) regex.matches(text.substr(end + 1, 4096));
  } catch (const lightlora::detail::RegexError&) {
  }
  return 0;
}
