// SPDX-License-Identifier: Apache-2.0
// What the fuzzers check of one input. The fuzzers (*_fuzz.cpp) and the ordinary tests
// (fuzz_corpus_test.cpp) share it; it needs no LibTorch.
#pragma once

#include <lightlora/formats/json.h>
#include <lightlora/formats/safetensors_header.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fuzz {

inline void demand(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

inline bool is_one_line(const std::string& message) {
  return !message.empty() && message.find('\n') == message.npos && lightlora::is_utf8(message);
}

using Header = lightlora::detail::SafetensorsHeader;

/// The header of a file, or nothing if the reader refuses it.
inline std::optional<Header> read_header(std::string_view file, bool allow_trailing_bytes) {
  try {
    return lightlora::detail::parse_safetensors_header(file, allow_trailing_bytes);
  } catch (const lightlora::SafetensorsHeaderError& error) {
    demand(is_one_line(error.what()), "an error message is one line of UTF-8");
    return std::nullopt;
  }
}

/// Demands, independently of the reader's own arithmetic, that the tensors and `trailing_bytes`
/// tile the data exactly and have the sizes that their shapes say.
inline void check_tiling(const Header& header, std::string_view file) {
  demand(header.data_start <= file.size(), "the data begin inside the file");
  uint64_t end = 0;
  for (const auto& tensor : header.tensors) {
    demand(tensor.begin == end && tensor.end >= end, "tensors follow each other");
    end = tensor.end;
    auto bits = static_cast<long double>(lightlora::detail::safetensors_dtypes[tensor.dtype].bits);
    long double strides = 1;
    for (const int64_t size : tensor.shape) {
      demand(size >= 0, "sizes are not negative");
      bits *= static_cast<long double>(size);
      strides *= static_cast<long double>(size > 0 ? size : 1);
    }
    demand(bits == 8.0L * static_cast<long double>(tensor.end - tensor.begin),
           "a tensor has the bytes of its shape");
    demand(strides < 9.3e18L, "LibTorch can hold the strides");
    demand(!tensor.name.empty() && lightlora::is_utf8(tensor.name), "names are UTF-8");
  }
  demand(header.data_start + end + header.trailing_bytes == file.size(),
         "the data end with the file");
}

/// A file that is accepted can be written again with the same tensors, as the same bytes each time.
inline void check_rewriting(const Header& header, std::string_view file) {
  const auto written = lightlora::detail::safetensors_header_bytes(header.tensors, header.metadata);
  const std::string data(
      file.substr(header.data_start, file.size() - header.data_start - header.trailing_bytes));
  const auto again = read_header(written + data, /*allow_trailing_bytes=*/false);
  demand(again.has_value(), "a written header is accepted");
  demand(again->metadata == header.metadata, "metadata survive writing");
  demand(lightlora::detail::safetensors_header_bytes(again->tensors, again->metadata) == written,
         "writing twice gives the same bytes");
}

/// Whether the strict reader accepts the file. Errors: std::logic_error if a promise is broken
inline bool safetensors(std::string_view file) {
  const auto strict = read_header(file, /*allow_trailing_bytes=*/false);
  const auto lenient = read_header(file, /*allow_trailing_bytes=*/true);
  demand(lenient.has_value() || !strict.has_value(), "leniency refuses nothing more");
  if (lenient.has_value()) {
    demand(strict.has_value() == (lenient->trailing_bytes == 0),
           "leniency only allows trailing bytes");
    check_tiling(*lenient, file);
    check_rewriting(*lenient, file);
  }
  return strict.has_value();
}

/// Whether the text is JSON. Errors: std::logic_error if a promise is broken
inline bool json(std::string_view text) {
  using namespace lightlora;
  bool skipped = true;
  try {
    JsonReader reader(text);
    reader.skip();
    reader.finish();
  } catch (const JsonError& error) {
    demand(is_one_line(error.what()), "an error message is one line of UTF-8");
    skipped = false;
  }
  JsonValue value;
  try {
    value = parse_json(text);
  } catch (const JsonError&) {
    demand(!skipped, "skipping checks as much as reading");
    return false;
  }
  demand(skipped, "reading checks as much as skipping");
  const std::string compact = write_json(value);
  for (const JsonStyle style :
       {JsonStyle{}, JsonStyle{2, false, false}, JsonStyle{1, false, true}}) {
    demand(write_json(parse_json(write_json(value, style))) == compact, "a value survives writing");
  }
  const std::string sorted = write_json(value, {0, true, false});
  demand(write_json(parse_json(sorted), {0, true, false}) == sorted, "sorting is stable");
  return true;
}

}  // namespace fuzz
