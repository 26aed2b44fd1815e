// SPDX-License-Identifier: Apache-2.0
// Replays the fuzzers' corpus: the promises in fuzz/targets.h hold for every file, and the files
// that have a verdict in their name get it.
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>

#include "fuzz/file_targets.h"
#include "paths.h"
#include "support.h"

namespace {

std::string content(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Number of files with a verdict.
int replay(const std::string& target, const std::function<bool(std::string_view)>& accepts) {
  int with_verdict = 0;
  const std::filesystem::path corpus = LIGHTLORA_SOURCE_DIR "/tests/fuzz/corpus";
  for (const auto& file : std::filesystem::directory_iterator(corpus / target)) {
    const std::string name = file.path().filename().string();
    const std::string verdict = name.substr(0, name.find('_'));
    CAPTURE(name);
    bool accepted = false;
    REQUIRE_NOTHROW(accepted = accepts(content(file.path())));
    if (verdict == name) continue;
    ++with_verdict;
    CHECK(accepted == (verdict == "valid"));
    if (target == "safetensors" && verdict != "valid") {
      CHECK(fuzz::read_header(content(file.path()), /*allow_trailing_bytes=*/true).has_value() ==
            (verdict == "trailing"));
    }
  }
  return with_verdict;
}

}  // namespace

TEST_CASE("fuzz: the promises hold for the safetensors corpus", "[fuzz]") {
  CHECK(replay("safetensors", fuzz::safetensors) == 49);
}

TEST_CASE("fuzz: the promises hold for the GGUF corpus", "[fuzz]") {
  CHECK(replay("gguf", fuzz::gguf) == 13);
}

TEST_CASE("fuzz: the promises hold for the JSON corpus", "[fuzz]") {
  CHECK(replay("json", fuzz::json) == 22);
}

TEST_CASE("fuzz: the promises hold for the torch.save corpus", "[fuzz]") {
  CHECK(replay("torch_file", fuzz::torch_file) == 32);
}

TEST_CASE("fuzz: the promises hold for the names of tensors", "[fuzz]") {
  CHECK(replay("lora_keys",
               [](std::string_view name) { return fuzz::lora_key(std::string(name)); }) == 51);
}

TEST_CASE("fuzz: the promises hold for whole files of every dialect", "[fuzz]") {
  const ScratchFolder folder;
  std::ofstream(folder.file("adapter_config.json")) << R"({"peft_type": "LORA", "r": 2})";
  const std::string file = folder.file("input");
  const std::filesystem::path corpus = LIGHTLORA_SOURCE_DIR "/tests/fuzz/corpus/lora_file";
  int with_verdict = 0;
  for (const auto& seed : std::filesystem::directory_iterator(corpus)) {
    const std::string name = seed.path().filename().string();
    CAPTURE(name);
    std::filesystem::copy_file(seed, file, std::filesystem::copy_options::overwrite_existing);
    const bool lora = fuzz::lora_file(file, /*ignore_unmatched=*/false);
    const bool embedding = fuzz::embedding_file(file);
    fuzz::lora_file(file, /*ignore_unmatched=*/true);
    const std::string verdict = name.substr(0, name.find('_'));
    if (verdict == name) continue;
    ++with_verdict;
    CHECK(lora == (verdict == "lora" || verdict == "both"));
    CHECK(embedding == (verdict == "embedding" || verdict == "both"));
  }
  CHECK(with_verdict == 32);
}

TEST_CASE("fuzz: the promises hold for files with quantised weights", "[fuzz]") {
  const ScratchFolder folder;
  const std::string file = folder.file("input");
  CHECK(replay("quantized", [&](std::string_view bytes) {
          std::ofstream(file, std::ios::binary)
              .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
          return fuzz::quantized_file(file);
        }) == 20);
}

TEST_CASE("fuzz: a broken promise is noticed", "[fuzz]") {
  auto header = fuzz::read_header(std::string("\x02\0\0\0\0\0\0\0{}xyz", 13), true).value();
  CHECK_NOTHROW(fuzz::check_tiling(header, "0123456789xyz"));
  CHECK_THROWS_WITH(fuzz::check_tiling(header, "0123456789xy"), "the data end with the file");
  header.tensors.push_back({"a", 0, {2}, 0, 3});
  header.trailing_bytes = 0;
  CHECK_THROWS_WITH(fuzz::check_tiling(header, "0123456789xyz"),
                    "a tensor has the bytes of its shape");
}
