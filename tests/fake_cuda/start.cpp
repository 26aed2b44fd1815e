// SPDX-License-Identifier: Apache-2.0
// What happens when the library is loaded, and when its program ends.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/fake_cuda.h"

namespace fake_cuda {
namespace {

const bool registered = (register_device(), true);

// The program's own static variables are gone by then, ours are not.
struct AtTheEnd {
  ~AtTheEnd() {
    const char* path = std::getenv("FAKE_CUDA_COUNTS");
    if (!path) return;
    const std::string text = counts().json() + "\n";
    if (FILE* file = std::fopen(path, "w")) {
      std::fwrite(text.data(), 1, text.size(), file);
      std::fclose(file);
    }
  }
} at_the_end;

}  // namespace
}  // namespace fake_cuda
