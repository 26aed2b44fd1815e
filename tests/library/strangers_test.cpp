// SPDX-License-Identifier: Apache-2.0
// Files from strangers, as far as the library itself reads and writes them: the programs' part is in
// tests/programs/strangers_*_test.py.
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/linear_regex.h>
#include <lightlora/file_io.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support.h"

using namespace lightlora;
using lightlora::detail::LinearRegex;
using lightlora::detail::RegexError;

namespace {

namespace fs = std::filesystem;

std::string text_of(const std::string& path) { return read_file(path, 1'000'000); }

void write_text(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace

TEST_CASE("strangers: regular expressions mean what Python takes them for", "[strangers]") {
  struct Row {
    const char *expression, *yes, *no;
  };
  for (const auto& [expression, yes, no] : {
           Row{"abc", "abc", "abcd"},
           Row{"a.c", "axc", "ac"},
           Row{"a*b+c?", "aabbc", "aac"},
           Row{"(ab|c)+", "abcab", "abca"},
           Row{"(?:x|)y", "y", "xx"},
           Row{"[a-cx]", "x", "d"},
           Row{"[^a-c]", "d", "a"},
           Row{"[]a]", "]", "b"},
           Row{"[a\\d]{2}", "a7", "7"},
           Row{"a{2,3}", "aaa", "aaaa"},
           Row{"a{2,}", "aaaaa", "a"},
           Row{"a{0}b", "b", "ab"},
           Row{"(a{2}){2}", "aaaa", "aaa"},
           Row{"\\d+\\.\\w\\s", "12.x ", "12x "},
           Row{"\\D\\W\\S", "a.b", "1.b"},
           Row{"^a$", "a", "b"},
           Row{"(^|b)a", "a", "ca"},
           Row{"a*?b", "aab", "aa"},
           Row{"(.*\\.)?(down_blocks\\.[01]\\..*)", "unet.down_blocks.1.x", "down_blocks.2.x"},
       }) {
    CAPTURE(expression);
    CHECK(LinearRegex(expression).matches(yes));
    CHECK_FALSE(LinearRegex(expression).matches(no));
  }
}

TEST_CASE("strangers: no regular expression takes more than its size times the text's",
          "[strangers]") {
  CHECK_FALSE(LinearRegex("(((a*)*)*)*(((a*)*)*)*x").matches(std::string(10'000, 'a')));
  CHECK(LinearRegex("(x+x+)+").matches(std::string(10'000, 'x')));
  for (const std::string expression :
       {std::string("(((a{900}){900}){900}){900}"), std::string("((((){900}){900}){900}){900}"),
        std::string(5000, '(') + std::string(5000, ')'), std::string(20'000, 'a'),
        std::string("a{1001}"), std::string("(?=a)"), std::string("(?P<x>a)"),
        std::string("(a)\\1"), std::string("["), std::string("[a-"), std::string("("),
        std::string(")"), std::string("*"), std::string("a{2,1}"), std::string("a{"),
        std::string("\\")}) {
    CAPTURE(expression.substr(0, 20));
    CHECK_THROWS_AS(LinearRegex(expression), RegexError);
  }
}

TEST_CASE("strangers: only a plain name becomes a part of a path", "[strangers]") {
  for (const std::string name : {"unet", "a.b", "...", "x y", "über"}) {
    CHECK(path_component(name, "file") == name);
  }
  for (const std::string name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("/"),
        std::string("../x"), std::string("a\\b"), std::string("a\nb"), std::string("a\0b", 3),
        std::string("\x7F"), std::string("\xFF"), std::string(201, 'a')}) {
    CAPTURE(name);
    CHECK_THROWS_WITH(path_component(name, "some/file"),
                      ContainsSubstring("'some/file': expected a plain name"));
  }
}

TEST_CASE("strangers: only regular files of a size are read", "[strangers]") {
  const ScratchFolder folder;
  write_text(folder.file("text"), "four");
  CHECK(read_file(folder.file("text"), 4) == "four");
  CHECK_THROWS_WITH(read_file(folder.file("text"), 3), ContainsSubstring("at most 3 bytes"));
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  fs::create_symlink("/dev/zero", folder.file("zeros"));
  fs::create_symlink("text", folder.file("link"));
  CHECK(text_of(folder.file("link")) == "four");
  CHECK_THROWS_WITH(text_of(folder.file("pipe")), ContainsSubstring("got a device or a pipe"));
  CHECK_THROWS_WITH(text_of(folder.file("zeros")), ContainsSubstring("got a device or a pipe"));
  CHECK_THROWS_WITH(text_of(folder.path().string()), ContainsSubstring("got a folder"));
  CHECK_THROWS_WITH(text_of(folder.file("none")), ContainsSubstring("nothing of that name"));
}

TEST_CASE("strangers: a link stays a link, and a file keeps its permissions", "[strangers]") {
  const ScratchFolder folder;
  fs::create_directory(folder.path() / "below");
  write_text(folder.file("below/file"), "old");
  REQUIRE(::chmod(folder.file("below/file").c_str(), 0640) == 0);
  fs::create_symlink("below/file", folder.file("first"));
  fs::create_symlink(folder.file("first"), folder.file("second"));
  fs::create_symlink("below/new", folder.file("hanging"));
  write_text(folder.file("second"), "new");
  CHECK(fs::is_symlink(folder.file("first")));
  CHECK(text_of(folder.file("below/file")) == "new");
  struct stat status{};
  REQUIRE(::stat(folder.file("below/file").c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0640);
  write_text(folder.file("hanging"), "there");
  CHECK(text_of(folder.file("below/new")) == "there");
  fs::create_symlink("turns", folder.file("turns"));
  CHECK_THROWS_WITH(write_text(folder.file("turns"), ""),
                    ContainsSubstring("expected a name that a file can have"));
  CHECK_THROWS_WITH(write_text(folder.file(std::string(300, 'x')), ""),
                    ContainsSubstring("expected a name that a file can have"));
}

TEST_CASE("strangers: what a killed process left is removed, and nothing else", "[strangers]") {
  const ScratchFolder folder;
  const auto put = [&](const std::string& name) { std::ofstream(folder.file(name)) << "x"; };
  for (const char* name : {".lightlora-999999999-0.tmp", ".lightlora-1-0.tmp", ".lightlora-x.tmp",
                           ".lightlora-999999999-0.tmp.old", "a.tmp"}) {
    put(name);
  }
  write_text(folder.file("file"), "y");
  CHECK_FALSE(fs::exists(folder.file(".lightlora-999999999-0.tmp")));
  for (const char* name : {".lightlora-1-0.tmp", ".lightlora-x.tmp",
                           ".lightlora-999999999-0.tmp.old", "a.tmp", "file"}) {
    CAPTURE(name);
    CHECK(fs::exists(folder.file(name)));
  }
}

TEST_CASE("strangers: names in messages cannot write on a terminal", "[strangers]") {
  using lightlora::detail::shown;
  CHECK(shown("a\x1b[2J\nb") == "'a?[2J?b'");
  CHECK(shown("\xC2\x9B\xE2\x80\xAEx\xE2\x81\xA6\xFF") == "'??x??'");
  CHECK(shown("bär €") == "'bär €'");
  CHECK(shown(std::string(99, 'a') + "é!") == "'" + std::string(99, 'a') + "...'");
}

TEST_CASE("strangers: products of sizes do not overflow", "[strangers]") {
  using lightlora::detail::saturating_product;
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  CHECK(saturating_product({3, 4, 5}) == 60);
  CHECK(saturating_product({most, 2}) == most);
  CHECK(saturating_product({most, most, 0}) == 0);
  CHECK(saturating_product({-1, 5}) == 0);
  lightlora::detail::ValueBudget budget(1000);
  budget.spend("x: ", {1000, 1000});
  CHECK_THROWS_WITH(budget.spend("x: ", {1 << 20, 1 << 20}),
                    ContainsSubstring("x: expected sizes"));
}
