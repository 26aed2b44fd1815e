// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the settings in a picture; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::parameters({reinterpret_cast<const char*>(data), size});
  return 0;
}
