// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over files with quantised weights, bitsandbytes' and GGUF, to the last number; see
// run.sh.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "file_targets.h"
#include "header_mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const struct File {
    File() : path("/dev/shm/lightlora-fuzz-" + std::to_string(getpid())) {}
    ~File() { std::filesystem::remove(path); }
    std::string path;
  } file;
  std::ofstream(file.path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  fuzz::quantized_file(file.path);
  return 0;
}
