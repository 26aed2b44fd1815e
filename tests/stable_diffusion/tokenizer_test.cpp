// SPDX-License-Identifier: Apache-2.0
// The tokenizer against transformers' CLIPTokenizer. tests/parity/make_text.py made the ids.
#include "text/tokenizer.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"
#include "text/tokenizer_text.h"

namespace {

using nlohmann::json;
using Ids = std::vector<int64_t>;

std::string data(const std::string& name) { return std::string(LIGHTLORA_TEST_DATA) + "/" + name; }

const json& reference() {
  static const json ids = sd::read_json_file(data("tokenizer_ids.json"));
  return ids;
}

const sd::Tokenizer& demo() {
  static const sd::Tokenizer tokenizer(data("tokenizer_demo"));
  return tokenizer;
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// A tokenizer folder of seven entries that a test can spoil.
struct TinyFolder {
  TinyFolder() {
    write(folder.file("vocab.json"),
          R"({"a":0,"b":1,"a</w>":2,"b</w>":3,"ab</w>":4,"<|startoftext|>":5,"<|endoftext|>":6})");
    write(folder.file("merges.txt"), "#version: 0.2\na b</w>\n");
  }
  std::string path() const { return folder.path().string(); }
  std::string error() const {
    try {
      sd::Tokenizer tokenizer(path());
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  }

  ScratchFolder folder;
};

}  // namespace

TEST_CASE("tokenizer: ids equal transformers' for every prompt and form of folder",
          "[tokenizer][parity]") {
  const auto& prompts = reference()["prompts"];
  REQUIRE(prompts.size() >= 250);
  for (const auto* name : {"tokenizer_demo", "tokenizer_bang", "tokenizer_dicts"}) {
    const auto& expected = reference()["tokenizers"][name];
    const sd::Tokenizer tokenizer(data(name));
    REQUIRE(tokenizer.model_max_length() == expected["length"].get<int64_t>());
    REQUIRE(tokenizer.size() == expected["size"].get<int64_t>());
    for (size_t i = 0; i < prompts.size(); ++i) {
      INFO(name << ", prompt " << i << ": " << prompts[i].dump());
      const auto prompt = prompts[i].get<std::string>();
      REQUIRE(tokenizer.tokenize(prompt) == expected["ids"][i].get<Ids>());
      REQUIRE(tokenizer.encode(prompt) == expected["padded"][i].get<Ids>());
    }
  }
}

TEST_CASE("tokenizer: added tokens equal transformers' add_tokens", "[tokenizer][parity]") {
  const auto& expected = reference()["added"];
  sd::Tokenizer tokenizer(data("tokenizer_demo"));
  REQUIRE(tokenizer.size() == expected["size"][0].get<int64_t>());
  for (size_t i = 0; i < expected["tokens"].size(); ++i) {
    const auto token = expected["tokens"][i].get<std::string>();
    REQUIRE(tokenizer.add_token(token) == expected["ids_of_tokens"][i].get<int64_t>());
    REQUIRE(tokenizer.token_id(token) == expected["ids_of_tokens"][i].get<int64_t>());
  }
  REQUIRE(tokenizer.size() == expected["size"][1].get<int64_t>());
  for (size_t i = 0; i < expected["prompts"].size(); ++i) {
    INFO(expected["prompts"][i].dump());
    REQUIRE(tokenizer.tokenize(expected["prompts"][i]) == expected["ids"][i].get<Ids>());
  }
}

TEST_CASE("tokenizer: chunks hold the whole text and begin with what the encoder reads",
          "[tokenizer]") {
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += "red apple, ";
  const auto all = demo().tokenize(prompt);
  const auto chunks = demo().encode_chunks(prompt);
  REQUIRE(chunks.size() == (all.size() + 74) / 75);
  REQUIRE(chunks.front() == demo().encode(prompt));
  Ids joined;
  for (const auto& chunk : chunks) {
    REQUIRE(chunk.size() == 77);
    REQUIRE(chunk.front() == demo().bos_id());
    for (size_t i = 1; i < chunk.size() && chunk[i] != demo().eos_id(); ++i) {
      joined.push_back(chunk[i]);
    }
  }
  REQUIRE(joined == all);
  REQUIRE(demo().encode_chunks("").size() == 1);
  REQUIRE(demo().encode_chunks("").front()[1] == demo().eos_id());
}

TEST_CASE("tokenizer: a text that fills the encoder exactly is not cut", "[tokenizer]") {
  std::string fits;
  for (int i = 0; i < 75; ++i) fits += "a ";
  REQUIRE(demo().tokenize(fits).size() == 75);
  REQUIRE(demo().encode_chunks(fits).size() == 1);
  REQUIRE(demo().truncation_warning(fits).empty());
  REQUIRE(demo().encode_chunks(fits + "b").size() == 2);
  const auto warning = demo().truncation_warning(fits + "red apple");
  REQUIRE_THAT(warning, ContainsSubstring("reads 75 tokens"));
  REQUIRE_THAT(warning, ContainsSubstring("'red apple'"));
  REQUIRE(demo().truncation_warning(fits + "red apple", 2).empty());
  const auto of_two = demo().truncation_warning(fits + fits + "red apple", 2);
  REQUIRE_THAT(of_two, ContainsSubstring("reads 150 tokens") && ContainsSubstring("'red apple'"));
}

TEST_CASE("tokenizer: decode gives the text back in lower case", "[tokenizer]") {
  REQUIRE(demo().decode(demo().tokenize("A RED Apple 🍎 é")) == "a red apple 🍎 é");
  // Half of a character: the bytes alone are no UTF-8.
  auto ids = demo().tokenize("é");
  ids.pop_back();
  REQUIRE(demo().decode(ids) == "\xef\xbf\xbd");
  REQUIRE_THROWS_WITH(demo().decode({999999}), ContainsSubstring("expected an id below 1462"));
}

TEST_CASE("tokenizer: malformed UTF-8 is refused and named", "[tokenizer]") {
  for (const std::string text :
       {"a\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    REQUIRE_THROWS_WITH(demo().tokenize(text), ContainsSubstring("expected UTF-8, got the byte"));
  }
  REQUIRE_THROWS_WITH(demo().tokenize("ab\xff"), ContainsSubstring("at offset 2"));
}

TEST_CASE("tokenizer: a folder without a maximum takes the caller's", "[tokenizer]") {
  TinyFolder tiny;
  REQUIRE(sd::Tokenizer(tiny.path()).model_max_length() == 77);
  REQUIRE(sd::Tokenizer(tiny.path(), 5).encode("AB ab ab ab") == Ids{5, 4, 4, 4, 6});
  write(tiny.folder.file("tokenizer_config.json"), R"({"model_max_length": 1e30})");
  REQUIRE(sd::Tokenizer(tiny.path(), 9).model_max_length() == 9);
}

TEST_CASE("tokenizer: a broken folder gives one line that names the file", "[tokenizer]") {
  TinyFolder tiny;
  REQUIRE(tiny.error() == "no error");
  SECTION("no vocabulary") {
    std::filesystem::remove(tiny.folder.file("vocab.json"));
    REQUIRE_THAT(tiny.error(),
                 ContainsSubstring("expected vocab.json and merges.txt or tokenizer.json"));
  }
  SECTION("no merges") {
    std::filesystem::remove(tiny.folder.file("merges.txt"));
    REQUIRE_THAT(tiny.error(), ContainsSubstring("merges.txt': expected a file, got none"));
  }
  SECTION("not JSON") {
    write(tiny.folder.file("vocab.json"), "version https://git-lfs");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("vocab.json': expected JSON"));
  }
  SECTION("ids that are no numbers") {
    write(tiny.folder.file("vocab.json"), R"({"a": "0"})");
    REQUIRE_THAT(tiny.error(),
                 ContainsSubstring("expected ids of tokens from 0 to 2147483647, got \"0\""));
  }
  SECTION("a merge of something unknown") {
    write(tiny.folder.file("merges.txt"), "a b</w>\na x\n");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("got 'x' without an id"));
  }
  SECTION("a merge of three") {
    write(tiny.folder.file("merges.txt"), "a b c\n");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("two symbols and one space"));
  }
  SECTION("a maximum that leaves no room") {
    write(tiny.folder.file("tokenizer_config.json"), R"({"model_max_length": 2})");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("expected a model_max_length above 2, got 2"));
  }
  SECTION("another model") {
    write(tiny.folder.file("tokenizer.json"), R"({"model": {"type": "Unigram"}})");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("expected a BPE model, got Unigram"));
  }
  SECTION("a field of another type") {
    write(tiny.folder.file("tokenizer.json"), R"({"model": 3})");
    REQUIRE_THAT(tiny.error(), ContainsSubstring("got a field of another type"));
  }
  REQUIRE(tiny.error().find('\n') == std::string::npos);
}

TEST_CASE("tokenizer: a byte without an entry becomes the unknown token", "[tokenizer]") {
  TinyFolder tiny;
  REQUIRE(sd::Tokenizer(tiny.path()).tokenize("axb") == Ids{0, 6, 3});
}

TEST_CASE("tokenizer: form C leaves marks alone that transformers does not know", "[tokenizer]") {
  // U+1AC1 has a combining class since Unicode 14: utf8proc alone would put it behind U+0323.
  REQUIRE(sd::to_nfc(U"x\u1ac1\u0323") == U"x\u1ac1\u0323");
  REQUIRE(sd::to_nfc(U"a\u0301\u0323") == U"\u1ea1\u0301");
  REQUIRE(sd::normalize_text(U"\u0130 \u2003 \u03a3\u0391\u03a3") == U"i\u0307 \u03c3\u03b1\u03c3");
}
