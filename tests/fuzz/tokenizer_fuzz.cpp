// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the files of a tokenizer, with zero bytes between them; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::tokenizer({reinterpret_cast<const char*>(data), size});
  return 0;
}
