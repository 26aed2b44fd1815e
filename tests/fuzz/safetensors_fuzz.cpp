// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the validation of safetensors files; see run.sh.
#include "header_mutator.h"
#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::safetensors({reinterpret_cast<const char*>(data), size});
  return 0;
}
