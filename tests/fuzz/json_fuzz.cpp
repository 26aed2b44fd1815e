// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the JSON reader and writer; see run.sh.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::json({reinterpret_cast<const char*>(data), size});
  return 0;
}
