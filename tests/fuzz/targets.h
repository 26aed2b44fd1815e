// SPDX-License-Identifier: Apache-2.0
// What the fuzzers check of one input. The fuzzers (*_fuzz.cpp) and the ordinary tests
// (fuzz_corpus_test.cpp) share it; it needs no LibTorch.
#pragma once

#include <lightlora/detail/formats/gguf_header.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/pickle.h>
#include <lightlora/detail/formats/safetensors_header.h>

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

/// Whether the strict reader accepts the file.
/// Errors: std::logic_error if a promise is broken
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

/// Whether a GGUF file is accepted.
/// Errors: std::logic_error if a promise is broken
inline bool gguf(std::string_view file) {
  lightlora::detail::GgufHeader header;
  try {
    header = lightlora::detail::parse_gguf_header(file);
  } catch (const lightlora::detail::GgufError& error) {
    demand(is_one_line(error.what()), "an error message is one line of UTF-8");
    return false;
  }
  uint64_t end = 0;
  for (const auto& tensor : header.tensors) {
    demand(tensor.begin >= end && tensor.end >= tensor.begin, "tensors follow each other");
    end = tensor.end;
    long double numbers = 1;
    for (const int64_t size : tensor.shape) {
      demand(size >= 0, "sizes are not negative");
      numbers *= static_cast<long double>(size);
    }
    demand(numbers * static_cast<long double>(tensor.type->bytes) ==
               static_cast<long double>(tensor.end - tensor.begin) *
                   static_cast<long double>(tensor.type->numbers),
           "a tensor has the bytes of its shape");
    demand(!tensor.name.empty() && lightlora::is_utf8(tensor.name), "names are UTF-8");
  }
  demand(end == 0 || header.data_start + end <= file.size(), "the data lie in the file");
  return true;
}

/// Whether the text is JSON.
/// Errors: std::logic_error if a promise is broken
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

/// Demands that every tensor of a pickle lies in its storage.
inline void check_pickle(const lightlora::detail::Pickle& pickle) {
  using namespace lightlora::detail;
  for (const auto& [name, index] : PickleFlattener(pickle).leaves().tensors) {
    const auto& tensor = pickle.tensors.at(index);
    demand(lightlora::is_utf8(name), "names are UTF-8");
    demand(safetensors_dtype_index(tensor.dtype) >= 0, "types are known");
    demand(tensor.sizes.size() == tensor.strides.size(), "each dimension has a stride");
    long double last = static_cast<long double>(tensor.offset), count = 1;
    for (size_t i = 0; i < tensor.sizes.size(); ++i) {
      demand(tensor.sizes[i] >= 0 && tensor.strides[i] >= 0, "sizes are not negative");
      count *= static_cast<long double>(tensor.sizes[i]);
      last += static_cast<long double>(tensor.sizes[i] - 1) *
              static_cast<long double>(tensor.strides[i]);
    }
    demand(count == 0 || last < static_cast<long double>(tensor.storage_size),
           "a tensor lies in its storage");
    demand(count <= static_cast<long double>(tensor.storage_size),
           "a tensor is not larger than its storage");
  }
}

/// Whether a file of torch.save, or the bare pickle of one, is accepted.
/// Errors: std::logic_error if a promise is broken
inline bool torch_file(std::string_view file) {
  using namespace lightlora::detail;
  try {
    if (!is_zip(file)) {
      check_pickle(read_pickle(file));
      return true;
    }
    uint64_t total = 0;
    for (const auto& [name, entry] : read_zip(file)) {
      demand(entry.begin <= file.size() && entry.size <= file.size() - entry.begin,
             "entries lie in the file");
      total += entry.size;
      const auto bytes = file.substr(entry.begin, entry.size);
      if (ends_with(name, "/data.pkl")) check_pickle(read_pickle(bytes));
    }
    demand(total <= file.size(), "entries are no larger than the file");
  } catch (const ArchiveError& error) {
    demand(is_one_line(error.what()), "an error message is one line of UTF-8");
    return false;
  }
  return true;
}

/// Whether a tensor's name is one of a LoRA, in any dialect.
/// Errors: std::logic_error if a promise is broken
inline bool lora_key(const std::string& name) {
  using namespace lightlora::detail;
  const auto key = parse_lora_key(name);
  likely_cause({name});
  if (!key || key->passed_over) return false;
  if (!key->algorithm.empty()) {
    demand(key->layer.empty(), "a method that is not read names no layer");
    return false;
  }
  demand(!key->role.empty() && *key->dialect != '\0', "a layer's tensor has a role and a dialect");
  demand(key->redundant == key->layer.empty(), "a key names a layer unless it is redundant");
  if (key->redundant) return true;
  demand(key->component == "unet" || key->component == "text_encoder" ||
             key->component == "text_encoder_2" || key->component.empty(),
         "components are known");
  if (std::string(key->dialect) == "kohya" && name.rfind("lora_", 0) == 0) {
    demand(key->component == "unet" ? is_unet_layer(key->layer) : is_text_layer(key->layer),
           "kohya's names are those of known layers");
    const auto again = parse_lora_key(key->component + "." + key->layer + ".lora_A.weight");
    demand(again && again->layer == key->layer && again->component == key->component,
           "a layer's own name means that layer");
  }
  return true;
}

}  // namespace fuzz
