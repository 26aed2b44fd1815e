// SPDX-License-Identifier: Apache-2.0
// libFuzzer target over whole files with adapters or embeddings, in every dialect; see run.sh.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "file_targets.h"
#include "header_mutator.h"

namespace {

// The readers map files, so each input becomes one, in memory. PEFT's wants its configuration
// beside.
const std::string& input_path() {
  static const std::string path = [] {
    const std::filesystem::path folder = "/dev/shm/lightlora-fuzz-" + std::to_string(getpid());
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "adapter_config.json") << R"({"peft_type": "LORA", "r": 2})";
    static struct Remover {
      std::filesystem::path folder;
      ~Remover() { std::filesystem::remove_all(folder); }
    } remover{folder};
    return (folder / "input").string();
  }();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::ofstream(input_path(), std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  fuzz::lora_file(input_path(), /*ignore_unmatched=*/false);
  fuzz::lora_file(input_path(), /*ignore_unmatched=*/true);
  fuzz::embedding_file(input_path());
  return 0;
}
