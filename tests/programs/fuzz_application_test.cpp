// SPDX-License-Identifier: Apache-2.0
// Replays the corpus of the application's fuzzers: the promises hold for every file, and the files
// that have a verdict in their name get it.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "fuzz/application_targets.h"
#include "paths.h"
#include "support.h"

namespace {

/// Number of files with a verdict.
int replay_application(const std::string& target, bool (*accepts)(std::string_view)) {
  int with_verdict = 0;
  const std::filesystem::path corpus = LIGHTLORA_SOURCE_DIR "/tests/fuzz/corpus";
  for (const auto& file : std::filesystem::directory_iterator(corpus / target)) {
    const std::string name = file.path().filename().string();
    const std::string verdict = name.substr(0, name.find('_'));
    CAPTURE(name);
    std::ifstream stream(file.path(), std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(stream), {}};
    bool accepted = false;
    REQUIRE_NOTHROW(accepted = accepts(content));
    if (verdict == name) continue;
    ++with_verdict;
    CHECK(accepted == (verdict == "valid"));
  }
  return with_verdict;
}

}  // namespace

TEST_CASE("fuzz: the promises hold for the files that the application reads", "[fuzz]") {
  CHECK(replay_application("tokenizer", fuzz::tokenizer) == 6);
  CHECK(replay_application("model_config", fuzz::model_config) == 4);
  CHECK(replay_application("picture", fuzz::picture) == 8);
  CHECK(replay_application("settings", fuzz::settings) == 8);
  CHECK(replay_application("data_folder", fuzz::data_folder) == 8);
  CHECK(replay_application("emoji_list", fuzz::emoji_list) == 4);
  CHECK(replay_application("training_lists", fuzz::training_lists) == 5);
  CHECK(replay_application("parameters", fuzz::parameters) == 5);
  CHECK(replay_application("doctor", fuzz::doctor) == 5);
  CHECK(replay_application("transformer_lora", fuzz::transformer_lora) == 7);
}
