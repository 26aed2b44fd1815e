// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over lists of prompts to sample; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::training_lists({reinterpret_cast<const char*>(data), size});
  return 0;
}
