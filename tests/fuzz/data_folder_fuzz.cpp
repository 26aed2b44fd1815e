// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over what lies beside pictures to learn from: metadata.jsonl and captions; see run.sh.
#include <cstddef>
#include <cstdint>

#include "application_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::data_folder({reinterpret_cast<const char*>(data), size});
  return 0;
}
