// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over the reader of torch.save's files: the zip container and the pickle; see
// run.sh.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::torch_file({reinterpret_cast<const char*>(data), size});
  return 0;
}
