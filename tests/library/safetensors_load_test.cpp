// SPDX-License-Identifier: Apache-2.0
#include <lightlora/file_io.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "safetensors_bytes.h"
#include "support.h"

using namespace lightlora;
using bytes::entry;
using bytes::file;

namespace {

std::string bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace

TEST_CASE("safetensors: the table of contents gives names, types and places", "[safetensors]") {
  const ScratchFolder folder;
  bytes::write(folder.file("x"), file("{" + entry("late", "F16", "[1,2]", "[2,6]") + "," +
                                          entry("early", "U8", "[2]", "[0,2]") + "}",
                                      "abcdef"));
  const SafetensorsFile opened(folder.file("x"));
  CHECK(opened.path() == folder.file("x"));
  REQUIRE(opened.tensors().size() == 2);
  CHECK(opened.tensors()[0].name == "early");
  const TensorInfo& late = opened.info("late");
  CHECK(late.dtype == at::kHalf);
  CHECK(late.dtype_name == "F16");
  CHECK(late.shape == std::vector<int64_t>{1, 2});
  CHECK(late.begin == 2);
  CHECK(late.end == 6);
  CHECK(opened.contains("early"));
  CHECK_FALSE(opened.contains("missing"));
  CHECK(message_of([&] { opened.load("missing"); }) ==
        "'" + folder.file("x") +
            "': expected tensor 'missing', got a file of 2 tensors without it");
}

TEST_CASE("safetensors: every dtype loads with its own bytes", "[safetensors]") {
  const std::vector<std::pair<std::string, at::ScalarType>> dtypes{{"F64", at::kDouble},
                                                                   {"F32", at::kFloat},
                                                                   {"F16", at::kHalf},
                                                                   {"BF16", at::kBFloat16},
                                                                   {"I64", at::kLong},
                                                                   {"I32", at::kInt},
                                                                   {"I16", at::kShort},
                                                                   {"I8", at::kChar},
                                                                   {"U8", at::kByte},
                                                                   {"BOOL", at::kBool},
                                                                   {"F8_E4M3", at::kFloat8_e4m3fn},
                                                                   {"F8_E5M2", at::kFloat8_e5m2}};
  const ScratchFolder folder;
  for (const auto& [name, dtype] : dtypes) {
    CAPTURE(name);
    const size_t size = 3 * c10::elementSize(dtype);
    std::string data;
    for (size_t i = 0; i < size; ++i)
      data += static_cast<char>(dtype == at::kBool ? i % 2 : 17 * i + 1);
    bytes::write(
        folder.file("x"),
        file("{" + entry("a", name, "[3,1]", "[0," + std::to_string(size) + "]") + "}", data));
    const at::Tensor loaded = SafetensorsFile(folder.file("x")).load("a");
    CHECK(loaded.scalar_type() == dtype);
    CHECK(loaded.sizes().vec() == std::vector<int64_t>{3, 1});
    CHECK(loaded.is_contiguous());
    CHECK(bytes_of(loaded) == data);
  }
}

TEST_CASE("safetensors: tensors at odd addresses load byte for byte", "[safetensors]") {
  const std::string f64 = bytes::of(1.5) + bytes::of(-2.25), f16 = "\x01\x3C";  // just above 1
  const std::string header = "{" + entry("bool", "BOOL", "[1]", "[0,1]") + "," +
                             entry("f64", "F64", "[2]", "[1,17]") + "," +
                             entry("f16", "F16", "[]", "[17,19]") + "}";
  const ScratchFolder folder;
  for (const std::string padding : {"", " "}) {  // one of the two lengths is odd
    bytes::write(folder.file("x"), file(header + padding, "\1" + f64 + f16));
    const TensorMap loaded = SafetensorsFile(folder.file("x")).load_all();
    CHECK(loaded.at("bool").item<bool>());
    CHECK(at::equal(loaded.at("f64"), torch::tensor({1.5, -2.25}, at::kDouble)));
    CHECK(loaded.at("f16").item<double>() == 1.0 + 1.0 / 1024);
  }
}

TEST_CASE("safetensors: loaded tensors outlive the file and are the caller's own",
          "[safetensors]") {
  const ScratchFolder folder;
  bytes::write(folder.file("x"), file("{" + entry("a", "U8", "[2]", "[0,2]") + "}", "ab"));
  at::Tensor first, second;
  {
    const SafetensorsFile opened(folder.file("x"));
    first = opened.load("a");
    second = SafetensorsFile(opened).load("a");
  }
  std::filesystem::remove(folder.file("x"));
  first.fill_(0);
  CHECK(bytes_of(second) == "ab");
}

TEST_CASE("safetensors: a file cut off while it is open is an error, not a crash",
          "[safetensors]") {
  const ScratchFolder folder;
  const std::string content =
      file("{" + entry("a", "U8", "[20000]", "[0,20000]") + "}", std::string(20000, 'x'));
  bytes::write(folder.file("x"), content);
  const SafetensorsFile opened(folder.file("x"));
  std::filesystem::resize_file(folder.file("x"), 100);
  CHECK(message_of([&] { opened.load("a"); }) ==
        "'" + folder.file("x") + "': expected " + std::to_string(content.size()) +
            " bytes as when it was opened, got 100; hint: another program is writing to it");
}

TEST_CASE("safetensors: types that LibTorch cannot hold are listed, not loaded", "[safetensors]") {
  const ScratchFolder folder;
  for (const char* dtype : {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
                            "U16", "U32", "U64", "C64"}) {
    CAPTURE(dtype);
    const int index = lightlora::detail::safetensors_dtype_index(dtype);
    const uint64_t size = lightlora::detail::safetensors_dtypes[index].bits;  // of 8 elements
    bytes::write(folder.file("x"),
                 file("{" + entry("a", dtype, "[8]", "[0," + std::to_string(size) + "]") + "}",
                      std::string(size, '\0')));
    const SafetensorsFile opened(folder.file("x"));
    CHECK(opened.info("a").dtype == at::ScalarType::Undefined);
    CHECK(opened.info("a").dtype_name == dtype);
    try {
      opened.load("a");
      FAIL("loaded");
    } catch (const SafetensorsError& error) {
      CHECK(error.fault() == SafetensorsFault::unsupported_dtype);
      CHECK_THAT(
          error.what_without_backtrace(),
          ContainsSubstring(std::string("expected a dtype of LibTorch for tensor 'a', got ") +
                            dtype + "; hint: convert the file to F32, F16 or BF16"));
    }
  }
}

TEST_CASE("safetensors: a BOOL is 0 or 1", "[safetensors]") {
  const ScratchFolder folder;
  bytes::write(folder.file("x"), file("{" + entry("a", "BOOL", "[3]", "[0,3]") + "}", "\1\1\2"));
  const SafetensorsFile opened(folder.file("x"));
  CHECK(message_of([&] { opened.load("a"); }) ==
        "'" + folder.file("x") +
            "': expected 0 or 1 in BOOL tensor 'a', got another byte at element 2");
}

TEST_CASE("safetensors: NaN and infinity load unless finite values are asked for",
          "[safetensors]") {
  const ScratchFolder folder;
  const auto path = folder.file("x");
  const struct {
    std::string dtype, finite, not_finite;
  } rows[] = {
      {"F64", bytes::of(1.7e308), bytes::of(HUGE_VAL)},
      {"F32", bytes::of(-3.4e38f), bytes::of(std::nanf(""))},
      {"F32", bytes::of(1e-45f), bytes::of(-HUGE_VALF)},
      {"F16", "\xFF\x7B", std::string("\x00\xFC", 2)},
      {"BF16", "\x7F\x7F", "\xC0\x7F"},
      {"F8_E5M2", "\x7B", "\x7C"},
      {"F8_E4M3", "\x7E", "\xFF"},
      {"I16", "\xFF\x7F", ""},
  };
  for (const auto& row : rows) {
    CAPTURE(row.dtype);
    const std::string data = row.finite + row.not_finite;
    bytes::write(path, file("{" +
                                entry("a", row.dtype, row.not_finite.empty() ? "[1]" : "[2]",
                                      "[0," + std::to_string(data.size()) + "]") +
                                "}",
                            data));
    CHECK(bytes_of(SafetensorsFile(path).load("a")) == data);
    const SafetensorsFile checked(path, SafetensorsOptions().check_finite(true));
    CHECK(message_of([&] { checked.load("a"); }) ==
          (row.not_finite.empty()
               ? "no error"
               : "'" + path +
                     "': expected finite values in tensor 'a', got NaN or infinity at element 1"));
  }
}
