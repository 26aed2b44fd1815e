// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the validation of GGUF files; see run.sh.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::gguf({reinterpret_cast<const char*>(data), size});
  return 0;
}
