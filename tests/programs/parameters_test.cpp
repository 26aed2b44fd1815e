// SPDX-License-Identifier: Apache-2.0
// Settings of pictures in A1111's form: what is written comes back as it was, and what A1111's
// `quote` and `unquote` make of a value.
#include "generation/parameters.h"

#include "support.h"

using generation::Parameters;
using generation::parse_parameters;

namespace {

// The value of `Odd` as a line of settings has it.
std::string value_in(const std::string& text) {
  return *parse_parameters("a cat\nSteps: 1, Odd: " + text + ", Seed: 2", "a.png").find("Odd");
}

}  // namespace

TEST_CASE("parameters: any value comes back as it was written", "[parameters]") {
  for (const std::string value : {"plain",
                                  "",
                                  "a, b",
                                  "a: b",
                                  "\"",
                                  "\"\"",
                                  "\"a\"",
                                  "\"a\" ",
                                  "\"a\"b",
                                  "a\"",
                                  "\\",
                                  "a\\",
                                  "\\\"",
                                  "\"\\x\"",
                                  "\"\\",
                                  "C:\\new\\table",
                                  " a",
                                  "a ",
                                  " ",
                                  "a\nb",
                                  "a\tb",
                                  "a\rb",
                                  "a, Seed: 3",
                                  "{\"a\": [1, 2]}",
                                  "\xC3\xA9, \xF0\x9F\x90\xBB",
                                  "\xFF, \xFE",
                                  "\\u0041",
                                  "[a; b]",
                                  "\"\\ud800\""}) {
    CAPTURE(value);
    Parameters written;
    written.prompt = "a cat";
    written.fields = {{"Steps", "1"}, {"Odd", value}, {"Seed", "2"}, {"Last", value}};
    const Parameters read = parse_parameters(written.text(), "a.png");
    CHECK(read.fields == written.fields);
    CHECK(read.prompt == written.prompt);
  }
}

TEST_CASE("parameters: quotes are those of A1111, and others stay text", "[parameters]") {
  CHECK(value_in("\"a, b\"") == "a, b");
  CHECK(value_in("\"a\\\"b\\\\c\\n\\u00e9\\ud83d\\udc3b\\/\"") ==
        "a\"b\\c\n\xC3\xA9\xF0\x9F\x90\xBB/");
  // json.loads refuses these, so that A1111 keeps the quotes.
  for (const std::string odd : {"\"\\x\"", "\"\\ud800\"", "\"\\u12\"", "\"a\"b\""}) {
    CAPTURE(odd);
    CHECK(value_in(odd) == odd);
  }
  Parameters written;
  written.fields = {{"Steps", "1"}, {"Odd", "a \"b\": c"}, {"Path", "C\\d"}, {"Seed", "2"}};
  CHECK(written.text() == "\nSteps: 1, Odd: \"a \\\"b\\\": c\", Path: C\\d, Seed: 2");
}

TEST_CASE("parameters: prompts keep their lines and their spaces", "[parameters]") {
  const std::vector<std::string> prompts{"a cat", "",      " a\n  b ",
                                         "\n\na", "a\n\n", "Steps: 1, Seed: 2"};
  for (const std::string& prompt : prompts) {
    for (const std::string negative :
         {"", "blurry", " a", "a\n b\n", "\na", "Negative prompt: a", "a\nNegative prompt: b"}) {
      CAPTURE(prompt, negative);
      Parameters written;
      written.prompt = prompt;
      written.negative_prompt = negative;
      written.fields = {{"Steps", "1"}, {"Seed", "2"}};
      const Parameters read = parse_parameters(written.text(), "a.png");
      CHECK(read.prompt == prompt);
      CHECK(read.negative_prompt == negative);
    }
  }
  const Parameters windows =
      parse_parameters("a\r\nNegative prompt:b\r\nSteps: 1, Seed: 2\r\n", "a.png");
  CHECK(windows.prompt == "a");
  CHECK(windows.negative_prompt == "b");
}
