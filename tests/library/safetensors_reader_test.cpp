// SPDX-License-Identifier: Apache-2.0
#include <lightlora/file_io.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "safetensors_bytes.h"
#include "support.h"

using namespace lightlora;
using bytes::entry;
using bytes::file;

namespace {

using Fault = SafetensorsFault;

struct Row {
  std::string title;
  std::string content;
  Fault fault;
  std::string message;  // without the file's name
};

/// Demands that each content is refused for its reason, in the exact words, on one line.
void require_refusals(const std::vector<Row>& rows, SafetensorsOptions options = {}) {
  const ScratchFolder folder;
  const auto path = folder.file("x.safetensors");
  for (const auto& row : rows) {
    CAPTURE(row.title);
    bytes::write(path, row.content);
    try {
      const SafetensorsFile opened(path, options);
      FAIL("accepted");
    } catch (const SafetensorsError& error) {
      CHECK(error.fault() == row.fault);
      CHECK(error.what_without_backtrace() == "'" + path + "': " + row.message);
    }
  }
}

void require_accepted(const std::vector<std::pair<std::string, std::string>>& files) {
  const ScratchFolder folder;
  for (const auto& [title, content] : files) {
    CAPTURE(title);
    bytes::write(folder.file("x"), content);
    CHECK_NOTHROW(SafetensorsFile(folder.file("x")).load_all());
  }
}

std::string braces(const std::string& members) { return "{" + members + "}"; }

/// A file of one F32 tensor `a` with 8 bytes of data.
std::string one(const std::string& shape, const std::string& offsets) {
  return file(braces(entry("a", "F32", shape, offsets)), std::string(8, '\0'));
}

const std::string u8 = entry("a", "U8", "[1]", "[0,1]");

}  // namespace

TEST_CASE("safetensors: white space around the header is accepted", "[safetensors]") {
  require_accepted({{"before", file("\n\t\r {" + u8 + "}", "x")},
                    {"after", file("{" + u8 + "} \n\t\r", "x")},
                    {"inside", file("{ \"a\" : {\"dtype\" : \"U8\", \"shape\" : [ 1 ], "
                                    "\"data_offsets\" : [ 0 , 1 ] } }",
                                    "x")}});
}

TEST_CASE("safetensors: a header that is not one JSON object is refused", "[safetensors]") {
  const auto syntax = Fault::header_syntax;
  const auto encoding = Fault::header_encoding;
  require_refusals({
      {"NUL padding", file(braces(u8) + std::string(2, '\0'), "x"), syntax,
       "expected nothing after the JSON value, got byte 0x00 at byte 53 of the header"},
      {"trailing comma", file(braces(u8 + ","), "x"), syntax,
       "expected a key in quotes, got '}' at byte 53 of the header"},
      {"byte order mark", file("\xEF\xBB\xBF{}"), encoding,
       "expected JSON without a byte order mark, got a byte order mark at byte 0 of the header"},
      {"control character", file("{\"a\tb\":1}"), syntax,
       "expected control characters escaped, got byte 0x09 at byte 3 of the header"},
      {"lone surrogate", file("{\"\\ud800\":1}"), encoding,
       "expected surrogates in pairs, got a lone surrogate at byte 8 of the header"},
      {"not UTF-8", file("{\"\xFF\":1}"), encoding,
       "expected UTF-8, got byte 0xff at byte 2 of the header"},
      {"an array", file("[]"), syntax, "expected an object, got an array at byte 0 of the header"},
      {"a string", file("\"x\""), syntax,
       "expected an object, got a string at byte 0 of the header"},
      {"two objects", file("{}{}"), syntax,
       "expected nothing after the JSON value, got '{' at byte 2 of the header"},
      {"spaces only", file("  "), syntax,
       "expected a JSON value, got the end of the text at byte 2 of the header"},
  });
}

TEST_CASE("safetensors: whatever is given twice is refused", "[safetensors]") {
  const auto twice = Fault::duplicate_key;
  const std::string other = entry("b", "U8", "[1]", "[1,2]");
  require_refusals({
      {"identical tensors", file(braces(u8 + "," + u8), "x"), twice,
       "expected each key once, got the same key again at byte 53 of the header"},
      {"last one covers the data", file(braces(entry("a", "U8", "[0]", "[0,0]") + "," + u8), "x"),
       twice, "expected each key once, got the same key again at byte 53 of the header"},
      {"last one leaves a hole", file(braces(u8 + "," + entry("a", "U8", "[1]", "[1,2]")), "xy"),
       twice, "expected each key once, got the same key again at byte 53 of the header"},
      {"equal after unescaping",
       file(braces(u8 + "," + entry("\\u0061", "U8", "[1]", "[0,1]")), "x"), twice,
       "expected each key once, got the same key again at byte 53 of the header"},
      {"__metadata__", file(R"({"__metadata__":{},"__metadata__":{}})"), twice,
       "expected each key once, got the same key again at byte 19 of the header"},
      {"a metadata key", file(R"({"__metadata__":{"k":"1","k":"1"}})"), twice,
       "expected each key once, got the same key again at byte 25 of the header"},
      {"a field", file(R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "x"),
       twice, "expected each key once, got the same key again at byte 31 of the header"},
      {"an ignored field",
       file(R"({"a":{"x":{"y":1,"y":1},"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"),
       twice, "expected each key once, got the same key again at byte 17 of the header"},
  });
}

TEST_CASE("safetensors: metadata is text by name", "[safetensors]") {
  const ScratchFolder folder;
  bytes::write(folder.file("x"), file(R"({"__metadata__":{"format":"pt","\u00e9":"a\nb"}})"));
  CHECK(SafetensorsFile(folder.file("x")).metadata() ==
        Metadata{{"format", "pt"}, {"\xC3\xA9", "a\nb"}});
  bytes::write(folder.file("x"), file(R"({"__metadata__":null})"));
  CHECK(SafetensorsFile(folder.file("x")).metadata().empty());
  require_refusals({
      {"a null", file(R"({"__metadata__":{"k":null}})"), Fault::metadata,
       "expected a string as metadata 'k', got null"},
      {"a number", file(R"({"__metadata__":{"k":1}})"), Fault::metadata,
       "expected a string as metadata 'k', got a number"},
      {"an array", file(R"({"__metadata__":[]})"), Fault::metadata,
       "expected an object as __metadata__, got an array"},
  });
}

TEST_CASE("safetensors: an entry has dtype, shape and data_offsets", "[safetensors]") {
  require_accepted(
      {{"an extra field", file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],)"
                               R"("later":{"x":[1,2.5e3,null,"y"]}}})",
                               "x")}});
  require_refusals({
      {"a number", file(R"({"a":1})"), Fault::entry,
       "expected an object as the entry of tensor 'a', got a number"},
      {"no dtype", file(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", "x"), Fault::entry,
       "expected the field 'dtype' of tensor 'a', got an entry without it"},
      {"no shape", file(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", "x"), Fault::entry,
       "expected the field 'shape' of tensor 'a', got an entry without it"},
      {"no data_offsets", file(R"({"a":{"dtype":"U8","shape":[1]}})", "x"), Fault::entry,
       "expected the field 'data_offsets' of tensor 'a', got an entry without it"},
      {"a number as dtype", file(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", "x"),
       Fault::unknown_dtype, "expected a string as dtype of tensor 'a', got a number"},
      {"an unknown dtype", file(braces(entry("a", "F128", "[1]", "[0,16]")), std::string(16, '\0')),
       Fault::unknown_dtype, "expected a safetensors dtype for tensor 'a', got 'F128'"},
      {"a dtype in lower case",
       file(braces(entry("a", "f32", "[2]", "[0,8]")), std::string(8, '\0')), Fault::unknown_dtype,
       "expected a safetensors dtype for tensor 'a', got 'f32'"},
  });
}

TEST_CASE("safetensors: names are neither empty nor contain NUL", "[safetensors]") {
  const std::string expected = "expected tensor names that are not empty and have no NUL, got ";
  require_refusals({
      {"empty", file(braces(entry("", "U8", "[1]", "[0,1]")), "x"), Fault::name, expected + "''"},
      {"NUL", file(braces(entry("a\\u0000", "U8", "[1]", "[0,1]")), "x"), Fault::name,
       expected + "'a?'"},
  });
}

TEST_CASE("safetensors: offsets are two unsigned integers in order", "[safetensors]") {
  const auto offsets = Fault::offsets;
  const std::string unsigned_only =
      "expected unsigned integers in the data_offsets of tensor 'a', got ";
  require_refusals({
      {"negative", one("[2]", "[-8,0]"), offsets, unsigned_only + "'-8'"},
      {"fraction", one("[2]", "[0.0,8]"), offsets, unsigned_only + "'0.0'"},
      {"exponent", one("[2]", "[0,8e0]"), offsets, unsigned_only + "'8e0'"},
      {"string", one("[2]", "[\"0\",8]"), offsets, unsigned_only + "a string"},
      {"minus zero", one("[2]", "[-0,8]"), offsets, unsigned_only + "'-0'"},
      {"leading zero", one("[2]", "[00,8]"), Fault::header_syntax,
       "expected ',' or ']', got '0' at byte 49 of the header"},
      {"three", one("[2]", "[0,8,9]"), offsets, "expected two data_offsets of tensor 'a', got 3"},
      {"one", one("[2]", "[8]"), offsets, "expected two data_offsets of tensor 'a', got 1"},
      {"many", one("[2]", "[0,0,0,0,0,0,0,0,0,0]"), offsets,
       "expected two data_offsets of tensor 'a', got more"},
      {"object", one("[2]", "{}"), offsets,
       "expected an array as the data_offsets of tensor 'a', got an object"},
      {"reversed", one("[2]", "[8,0]"), offsets,
       "expected data_offsets of tensor 'a' in rising order, got 8 before 0"},
      {"above 64 bits", one("[2]", "[0,18446744073709551616]"), Fault::overflow,
       "expected integers of 64 bits in the data_offsets of tensor 'a', got "
       "'18446744073709551616'"},
      {"far away", one("[2]", "[18446744073709551607,18446744073709551615]"), Fault::hole,
       "expected tensor 'a' to begin where the one before ends, at 0, got 18446744073709551607 (a "
       "hole)"},
  });
}

TEST_CASE("safetensors: shapes are unsigned integers whose product fits", "[safetensors]") {
  const std::string expected = "expected unsigned integers in the shape of tensor 'a', got ";
  require_accepted({{"no element", file(braces(entry("a", "F32", "[0]", "[0,0]")))},
                    {"no dimension", file(braces(entry("a", "F32", "[]", "[0,4]")), "1234")},
                    {"no tensor", file("{}")}});
  require_refusals({
      {"negative", one("[-2]", "[0,8]"), Fault::shape, expected + "'-2'"},
      {"fraction", one("[2.0]", "[0,8]"), Fault::shape, expected + "'2.0'"},
      {"null", one("[null]", "[0,8]"), Fault::shape, expected + "null"},
      {"a number", one("2", "[0,8]"), Fault::shape,
       "expected an array as the shape of tensor 'a', got a number"},
      {"product above 64 bits", one("[2,18446744073709551614]", "[0,8]"), Fault::overflow,
       "expected a size of tensor 'a' that fits 64 bits, got an overflow"},
      {"product above 64 bits before a zero", one("[18446744073709551615,2,0]", "[0,8]"),
       Fault::overflow, "expected a size of tensor 'a' that fits 64 bits, got an overflow"},
      {"bits above 64 bits", one("[4611686018427387904]", "[0,8]"), Fault::overflow,
       "expected a size of tensor 'a' that fits 64 bits, got an overflow"},
      {"zero first", file(braces(entry("a", "F32", "[0,18446744073709551615,2]", "[0,0]"))),
       Fault::overflow, "expected dimensions of tensor 'a' that fit int64, got larger ones"},
      {"a size above int64", file(braces(entry("a", "F32", "[0,9223372036854775808]", "[0,0]"))),
       Fault::overflow, "expected dimensions of tensor 'a' that fit int64, got larger ones"},
      {"strides above int64", file(braces(entry("a", "F32", "[0,4294967296,4294967296]", "[0,0]"))),
       Fault::overflow, "expected dimensions of tensor 'a' that fit int64, got larger ones"},
      {"fewer bytes", one("[3]", "[0,8]"), Fault::byte_count,
       "expected 12 bytes of F32 for tensor 'a', got 8"},
      {"half a byte", file(braces(entry("a", "F4", "[3]", "[0,1]")), "x"), Fault::byte_count,
       "expected 1 and a fraction bytes of F4 for tensor 'a', got 1"},
  });
}

TEST_CASE("safetensors: tensors tile the data exactly", "[safetensors]") {
  const std::string from = "expected tensor 'b' to begin where the one before ends, at ";
  require_refusals({
      {"a hole", file(braces(u8 + "," + entry("b", "U8", "[1]", "[2,3]")), "xyz"), Fault::hole,
       from + "1, got 2 (a hole)"},
      {"a hole at the start", file(braces(entry("b", "U8", "[1]", "[1,2]")), "xy"), Fault::hole,
       from + "0, got 1 (a hole)"},
      {"an overlap",
       file(braces(entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]")),
            "xyz"),
       Fault::overlap, from + "2, got 1 (an overlap)"},
      {"the same bytes twice", file(braces(u8 + "," + entry("b", "U8", "[1]", "[0,1]")), "x"),
       Fault::overlap, from + "1, got 0 (an overlap)"},
      {"one byte too few", file(braces(entry("a", "F32", "[2]", "[0,8]")), "1234567"),
       Fault::truncated,
       "expected 8 bytes of data, got 7; hint: the file is cut off; download or copy it again"},
      {"one byte too many", file(braces(entry("a", "F32", "[2]", "[0,8]")), "123456789"),
       Fault::trailing_bytes,
       "expected 8 bytes of data, got 9 (1 behind the last tensor); hint: read it with "
       "SafetensorsOptions().allow_trailing_bytes(true)"},
  });
}

TEST_CASE("safetensors: depth, dimensions and names are bounded", "[safetensors]") {
  const std::string long_name(4097, 'n');
  const std::string deep = R"({"a":{"x":)" + std::string(40, '[') + std::string(40, ']') + "}}";
  require_accepted(
      {{"8 dimensions", file(braces(entry("a", "U8", "[1,1,1,1,1,1,1,1]", "[0,1]")), "x")},
       {"4096 bytes", file(braces(entry(long_name.substr(1), "U8", "[1]", "[0,1]")), "x")}});
  require_refusals({
      {"9 dimensions", file(braces(entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]")), "x"),
       Fault::limit, "expected at most 8 dimensions of tensor 'a', got more"},
      {"4097 bytes", file(braces(entry(long_name, "U8", "[1]", "[0,1]")), "x"), Fault::limit,
       "expected tensor names of at most 4096 bytes, got '" + long_name.substr(0, 100) + "...'"},
      {"40 levels", file(deep), Fault::limit,
       "expected nesting of at most 32, got more at byte 40 of the header"},
  });
}

TEST_CASE("safetensors: at most a million tensors", "[safetensors]") {
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i) {
    header += entry("t" + std::to_string(i), "U8", "[0]", "[0,0]") + ",";
  }
  header.back() = '}';
  require_refusals({{"a million and one", file(header), Fault::limit,
                     "expected at most 1000000 tensors, got more"}});
}

TEST_CASE("safetensors: a senseless header length is refused", "[safetensors]") {
  const auto length = [](uint64_t n) { return bytes::of(n) + "{}"; };
  const std::string expected = "expected a header of 2 to 100000000 bytes, got ";
  const std::string hint = "; hint: this is no safetensors file";
  const std::string cut = "; hint: the file is cut off; download or copy it again";
  require_refusals({
      {"0", length(0), Fault::header_length, expected + "0" + hint},
      {"1", length(1), Fault::header_length, expected + "1" + hint},
      {"2^63", length(uint64_t{1} << 63), Fault::header_length,
       expected + "9223372036854775808" + hint},
      {"2^64 - 1", length(~uint64_t{0}), Fault::header_length,
       expected + "18446744073709551615" + hint},
      {"2^64 - 8", length(~uint64_t{7}), Fault::header_length,
       expected + "18446744073709551608" + hint},
      {"100,000,001", length(100'000'001), Fault::header_length, expected + "100000001" + hint},
      {"100,000,000", length(100'000'000), Fault::truncated,
       "expected a header of 100000000 bytes, got only 2" + cut},
      {"header longer than the file", length(3), Fault::truncated,
       "expected a header of 3 bytes, got only 2" + cut},
      {"8 bytes", bytes::of<uint64_t>(2), Fault::truncated,
       "expected a header of 2 bytes, got only 0" + cut},
      {"7 bytes", std::string(7, '\1'), Fault::header_length,
       "expected at least 8 bytes, got 7; hint: download it again"},
  });
}

TEST_CASE("safetensors: other kinds of files are named", "[safetensors]") {
  const std::string expected = "expected a safetensors file, got ";
  const std::string convert =
      "; hint: load it in Python with torch.load(..., weights_only=True) and save it with "
      "safetensors";
  require_refusals({
      {"nothing", "", Fault::other_kind, expected + "an empty file; hint: download it again"},
      {"Git LFS", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
       Fault::other_kind,
       expected + "a Git LFS pointer; hint: run 'git lfs pull' where it was cloned"},
      {"zip", std::string("PK\x03\x04\x14\0\0\0\x08\0", 10), Fault::other_kind,
       expected + "a zip archive (as torch.save writes)" + convert},
      {"pickle", std::string("\x80\x02}q\0(X\1\0\0\0a", 12), Fault::other_kind,
       expected + "a Python pickle" + convert},
      {"HTML", "<!DOCTYPE html>\n<html></html>", Fault::other_kind,
       expected + "a web page (HTML); hint: download the file itself"},
      {"HTML after white space", "\r\n  <html>", Fault::other_kind,
       expected + "a web page (HTML); hint: download the file itself"},
      {"JSON index", R"({"metadata": {}, "weight_map": {"a": "x.safetensors"}})", Fault::other_kind,
       expected +
           "the JSON index of a model in several files; hint: name one of the files it lists"},
      {"JSON", R"({"peft_type": "LORA"})", Fault::other_kind,
       expected + "a JSON file; hint: name the .safetensors file beside it"},
      {"GGUF", std::string("GGUF\3\0\0\0\0", 9), Fault::other_kind,
       expected + "a GGUF file; hint: only safetensors files are read here"},
      {"gzip", std::string("\x1F\x8B\x08\x08\1\1\1\1", 8), Fault::other_kind,
       expected + "a gzip archive; hint: unpack it first"},
  });
}

TEST_CASE("safetensors: a file may begin with the first byte of another kind", "[safetensors]") {
  // '<' is 60: a header of 60 bytes.
  std::string header = braces(u8);
  header.resize(60, ' ');
  require_accepted({{"as HTML", file(header, "x")}});
}

TEST_CASE("safetensors: what cannot be opened is named", "[safetensors]") {
  const ScratchFolder folder;
  const auto missing = folder.file("missing.safetensors");
  CHECK_THROWS_WITH(
      SafetensorsFile(missing),
      ContainsSubstring("'" + missing + "': expected a file, got nothing of that name"));
  CHECK_THROWS_WITH(SafetensorsFile(folder.path().string()),
                    ContainsSubstring("expected a file, got a folder; hint: name a file in it"));
  CHECK_THROWS_WITH(SafetensorsFile("/dev/null"),
                    ContainsSubstring("expected a file, got a device or a pipe"));
  REQUIRE(mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(SafetensorsFile(folder.file("pipe")),
                    ContainsSubstring("expected a file, got a device or a pipe"));
  bytes::write(folder.file("plain"), "");
  CHECK_THROWS_WITH(SafetensorsFile(folder.file("plain") + "/x"),
                    ContainsSubstring("expected a readable file, got 'Not a directory'"));
}

TEST_CASE("safetensors: trailing bytes are refused unless allowed, and then counted",
          "[safetensors]") {
  const std::string content = file(braces(entry("a", "F32", "[2]", "[0,8]")), "12345678");
  require_refusals(
      {{"by default", content + "four", Fault::trailing_bytes,
        "expected 8 bytes of data, got 12 (4 behind the last tensor); hint: read it with "
        "SafetensorsOptions().allow_trailing_bytes(true)"}});
  const ScratchFolder folder;
  bytes::write(folder.file("x"), content + "four");
  const SafetensorsFile opened(folder.file("x"), SafetensorsOptions().allow_trailing_bytes(true));
  CHECK(opened.trailing_bytes() == 4);
  CHECK(opened.load("a").numel() == 2);
  bytes::write(folder.file("x"), content);
  CHECK(SafetensorsFile(folder.file("x")).trailing_bytes() == 0);
}

TEST_CASE("safetensors: leniency relaxes nothing but the end of the file", "[safetensors]") {
  require_refusals(
      {{"a hole", file(braces(u8 + "," + entry("b", "U8", "[1]", "[2,3]")), "xyz"), Fault::hole,
        "expected tensor 'b' to begin where the one before ends, at 1, got 2 (a hole)"},
       {"cut off", file(braces(entry("a", "F32", "[2]", "[0,8]")), "1234567"), Fault::truncated,
        "expected 8 bytes of data, got 7; hint: the file is cut off; download or copy it again"}},
      SafetensorsOptions().allow_trailing_bytes(true));
}

TEST_CASE("safetensors: an error shows names of a file on one line", "[safetensors]") {
  require_refusals({{"line break", file(R"({"a\nb":1})"), Fault::entry,
                     "expected an object as the entry of tensor 'a?b', got a number"}});
}
