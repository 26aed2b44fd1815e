// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over what a data set is made of: Unicode's list of emoji; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::emoji_list({reinterpret_cast<const char*>(data), size});
  return 0;
}
