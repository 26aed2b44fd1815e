// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the parser of tensor names, which knows every dialect; see run.sh.
#include <cstddef>
#include <cstdint>
#include <string>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::lora_key(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
