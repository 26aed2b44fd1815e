// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over LoRA files of transformer models: read, and written in every format; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::transformer_lora({reinterpret_cast<const char*>(data), size});
  return 0;
}
