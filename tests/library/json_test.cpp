// SPDX-License-Identifier: Apache-2.0
#include <lightlora/detail/formats/json.h>

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "support.h"

using namespace lightlora;
using namespace std::string_view_literals;

namespace {

struct Refusal {
  std::string_view text;
  JsonFault fault;
  std::string message;
};

void require_refusals(const std::vector<Refusal>& refusals) {
  for (const auto& refusal : refusals) {
    CAPTURE(std::string(refusal.text));
    try {
      parse_json(refusal.text);
      FAIL("accepted");
    } catch (const JsonError& error) {
      CHECK(error.fault() == refusal.fault);
      CHECK(std::string(error.what()) == refusal.message);
    }
  }
}

std::string nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("json: a text becomes a tree that keeps order, numbers and types", "[json]") {
  const JsonValue value = parse_json(
      " {\"z\": [1, -2.50e+1, \"x\"], \"a\": {\"t\": true, \"f\": false}, \"n\": null}\r\n\t");
  REQUIRE(value.object().size() == 3);
  CHECK(value.object()[0].first == "z");
  CHECK(value.object()[1].first == "a");
  CHECK(value.at("z").array()[0].integer() == 1);
  CHECK(value.at("z").array()[1].number() == -25.0);
  CHECK(value.at("z").array()[1].number_text() == "-2.50e+1");
  CHECK(value.at("z").array()[2].string() == "x");
  CHECK(value.at("a").at("t").boolean());
  CHECK_FALSE(value.at("a").at("f").boolean());
  CHECK(value.at("n").is_null());
  CHECK(value.find("missing") == nullptr);
}

TEST_CASE("json: escapes become UTF-8", "[json]") {
  CHECK(parse_json(R"("\"\\\/\b\f\n\r\t")").string() == "\"\\/\b\f\n\r\t");
  CHECK(parse_json(R"("\u0041\u00E9\u20ac\uD83D\ude00")").string() ==
        "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(parse_json(R"("\u0000")").string() == "\0"sv);
  CHECK(parse_json("\"\x7F\xC2\x80\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\"").string().size() ==
        13);
}

TEST_CASE("json: wrong syntax is refused with its position", "[json]") {
  const auto syntax = JsonFault::syntax;
  require_refusals({
      {"", syntax, "expected a JSON value, got the end of the text at byte 0"},
      {"  ", syntax, "expected a JSON value, got the end of the text at byte 2"},
      {"{\"a\":1,}", syntax, "expected a key in quotes, got '}' at byte 7"},
      {"[1,]", syntax, "expected a JSON value, got ']' at byte 3"},
      {"[1 2]", syntax, "expected ',' or ']', got '2' at byte 3"},
      {"{\"a\" 1}", syntax, "expected ':', got '1' at byte 5"},
      {"{a:1}", syntax, "expected a key in quotes, got 'a' at byte 1"},
      {"{\"a\":1", syntax, "expected ',' or '}', got the end of the text at byte 6"},
      {"[", syntax, "expected a JSON value, got the end of the text at byte 1"},
      {"\"a", syntax, "expected '\"', got the end of the text at byte 2"},
      {"{}{}", syntax, "expected nothing after the JSON value, got '{' at byte 2"},
      {"{}\0"sv, syntax, "expected nothing after the JSON value, got byte 0x00 at byte 2"},
      {"\0"sv, syntax, "expected a JSON value, got byte 0x00 at byte 0"},
      {"\"\n\"", syntax, "expected control characters escaped, got byte 0x0a at byte 1"},
      {"\"\0\""sv, syntax, "expected control characters escaped, got byte 0x00 at byte 1"},
      {"\"\\x\"", syntax, "expected a JSON escape, got 'x' at byte 2"},
      {"\"\\", syntax, "expected a JSON escape, got the end of the text at byte 2"},
      {"\"\\u12\"", syntax, "expected four hexadecimal digits, got '1' at byte 3"},
      {"\"\\u-123\"", syntax, "expected four hexadecimal digits, got '-' at byte 3"},
      {"tru", syntax, "expected true, got 't' at byte 0"},
      {"nan", syntax, "expected null, got 'n' at byte 0"},
      {"NaN", syntax, "expected a JSON value, got 'N' at byte 0"},
      {"// x", syntax, "expected a JSON value, got '/' at byte 0"},
  });
}

TEST_CASE("json: numbers are written as JSON writes them", "[json]") {
  for (const char* text : {"0", "-0", "10", "1.5", "-1e5", "2E-07", "0.0", "1e+9"}) {
    CHECK(parse_json(text).number_text() == text);
  }
  const auto syntax = JsonFault::syntax;
  require_refusals({
      {"01", syntax, "expected nothing after the JSON value, got '1' at byte 1"},
      {"-", syntax, "expected a digit, got the end of the text at byte 1"},
      {"+1", syntax, "expected a JSON value, got '+' at byte 0"},
      {".5", syntax, "expected a JSON value, got '.' at byte 0"},
      {"1.", syntax, "expected a digit, got the end of the text at byte 2"},
      {"1e", syntax, "expected a digit, got the end of the text at byte 2"},
      {"0x10", syntax, "expected nothing after the JSON value, got 'x' at byte 1"},
  });
}

TEST_CASE("json: text that is not UTF-8 is refused", "[json]") {
  const auto encoding = JsonFault::encoding;
  require_refusals({
      {"\xEF\xBB\xBF{}", encoding,
       "expected JSON without a byte order mark, got a byte order mark at byte 0"},
      {"\"\xFF\"", encoding, "expected UTF-8, got byte 0xff at byte 1"},
      {"\"\xC0\x80\"", encoding, "expected UTF-8, got byte 0xc0 at byte 1"},
      {"\"\xE0\x80\x80\"", encoding, "expected UTF-8, got byte 0xe0 at byte 1"},
      {"\"\xF0\x80\x80\x80\"", encoding, "expected UTF-8, got byte 0xf0 at byte 1"},
      {"\"\xED\xA0\x80\"", encoding, "expected UTF-8, got byte 0xed at byte 1"},
      {"\"\xF4\x90\x80\x80\"", encoding, "expected UTF-8, got byte 0xf4 at byte 1"},
      {"\"a\xE2\x82\"", encoding, "expected UTF-8, got byte 0xe2 at byte 2"},
      {"\"\x80\"", encoding, "expected UTF-8, got byte 0x80 at byte 1"},
      {R"("\ud800")", encoding, "expected surrogates in pairs, got a lone surrogate at byte 7"},
      {R"("\udc00")", encoding, "expected surrogates in pairs, got a lone surrogate at byte 7"},
      {R"("\ud800\u0041")", encoding,
       "expected surrogates in pairs, got a lone surrogate at byte 13"},
  });
}

TEST_CASE("json: a key given twice is refused in every object, after unescaping", "[json]") {
  const auto twice = JsonFault::duplicate_key;
  require_refusals({
      {R"({"a":1,"a":1})", twice, "expected each key once, got the same key again at byte 7"},
      {R"({"a":1,"\u0061":2})", twice, "expected each key once, got the same key again at byte 7"},
      {R"([{"x":{"b":0,"c":0,"b":0}}])", twice,
       "expected each key once, got the same key again at byte 19"},
  });
  CHECK(parse_json(R"({"a":{"a":1},"b":{"a":1}})").object().size() == 2);
}

TEST_CASE("json: nesting, keys and values are bounded", "[json]") {
  CHECK_NOTHROW(parse_json(nested(32)));
  require_refusals(
      {{nested(33), JsonFault::limit, "expected nesting of at most 32, got more at byte 32"}});
  JsonLimits limits;
  limits.keys = 2;
  CHECK_NOTHROW(parse_json(R"([{"a":1,"b":1},{"c":1,"d":1}])", limits));
  CHECK_THROWS_WITH(parse_json(R"({"a":{"b":{"c":1}}})", limits),
                    "expected at most 2 keys, got more at byte 14");
  limits.values = 3;
  CHECK_NOTHROW(parse_json("[1,2]", limits));
  CHECK_THROWS_WITH(parse_json("[1,2,3]", limits), "expected at most 3 values, got more at byte 5");
}

TEST_CASE("json: a value asked for as another type is an error", "[json]") {
  const JsonValue value = parse_json(R"({"s":"x","n":1.5,"big":9223372036854775808,"huge":1e999})");
  CHECK_THROWS_WITH(value.array(), "expected an array, got an object");
  CHECK_THROWS_WITH(value.at("s").integer(), "expected a number, got a string");
  CHECK_THROWS_WITH(value.at("n").string(), "expected a string, got a number");
  CHECK_THROWS_WITH(value.at("n").integer(), "expected an integer of 64 bits, got 1.5");
  CHECK_THROWS_WITH(value.at("big").integer(),
                    "expected an integer of 64 bits, got 9223372036854775808");
  CHECK(value.at("big").number() == 9223372036854775808.0);
  CHECK_THROWS_WITH(value.at("huge").number(),
                    "expected a number in the range of a double, got 1e999");
  CHECK_THROWS_WITH(value.at("x"), "expected the key 'x', got an object without it");
  CHECK_THROWS_WITH(JsonValue(std::numeric_limits<double>::infinity()),
                    "expected a finite number, got inf");
}

TEST_CASE("json: indent 2 with sorted keys gives the bytes of Python's json.dumps", "[json]") {
  const JsonValue value(JsonValue::Object{
      {"r", 4},
      {"lora_dropout", 0.0},
      {"eps", 1e-05},
      {"a\"\\\n\x01", "\xC3\xA9\xF0\x9F\x98\x80"},
      {"targets", JsonValue::Array{"to_q", JsonValue(), true, JsonValue::Array{}}},
      {"empty", JsonValue::Object{}},
      {"large", std::numeric_limits<int64_t>::min()},
  });
  CHECK(write_json(value, {/*indent=*/2, /*sort_keys=*/true, /*ascii=*/true}) == R"({
  "a\"\\\n\u0001": "\u00e9\ud83d\ude00",
  "empty": {},
  "eps": 1e-05,
  "large": -9223372036854775808,
  "lora_dropout": 0.0,
  "r": 4,
  "targets": [
    "to_q",
    null,
    true,
    []
  ]
})");
  CHECK(write_json(value) ==
        R"({"r":4,"lora_dropout":0.0,"eps":1e-05,"a\"\\\n\u0001":")"
        "\xC3\xA9\xF0\x9F\x98\x80"
        R"(","targets":["to_q",null,true,[]],"empty":{},"large":-9223372036854775808})");
}

TEST_CASE("json: what is not UTF-8 is not written", "[json]") {
  CHECK_THROWS_WITH(write_json(JsonValue(std::string("\xFF"))), "expected UTF-8, got other bytes");
}
