// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/json.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// What the reader and the writer of safetensors share. Standard library only: see
// safetensors_header.h.

namespace lightlora {

/// Metadata of a file: text by name.
using Metadata = std::map<std::string, std::string>;

/// What a safetensors file was refused for, in the order of the checks.
enum class SafetensorsFault {
  other_kind,  ///< another kind of file: an empty one, Git LFS pointer, zip, pickle, web page ...
  header_length,      ///< shorter than 8 bytes, or a header length that is 0 or above 100,000,000
  truncated,          ///< the header or the data end behind the end of the file
  header_encoding,    ///< not UTF-8, a byte order mark or a lone surrogate
  header_syntax,      ///< not one JSON object
  duplicate_key,      ///< a tensor, metadata key or field that is given twice
  limit,              ///< nested too deep, too many tensors, dimensions or keys, or too long a name
  metadata,           ///< `__metadata__` that is not text by name
  entry,              ///< a tensor's entry that is not an object with dtype, shape and data_offsets
  name,               ///< a tensor's name that is empty or contains NUL
  shape,              ///< not an array of unsigned integers
  offsets,            ///< not two unsigned integers, the first not above the second
  unknown_dtype,      ///< a type that the format does not have
  overflow,           ///< a size that 64 bits cannot hold
  byte_count,         ///< offsets that do not span as many bytes as dtype and shape need
  hole,               ///< bytes between two tensors that belong to none
  overlap,            ///< bytes that belong to two tensors
  trailing_bytes,     ///< bytes behind the last tensor
  unsupported_dtype,  ///< a type of the format that is not read here
  bool_value,         ///< a BOOL byte other than 0 and 1
  not_finite,         ///< NaN or infinity, if asked for
  missing_tensor      ///< a tensor that is asked for by a name that the file does not have
};

/// A fault in a file's bytes: one line without the file's name.
class SafetensorsHeaderError : public std::runtime_error {
 public:
  /// The message is one line.
  SafetensorsHeaderError(SafetensorsFault fault, const std::string& message)
      : std::runtime_error(message), fault_(fault) {}
  /// What kind of error it is.
  SafetensorsFault fault() const { return fault_; }

 private:
  SafetensorsFault fault_;
};

namespace detail {

struct SafetensorsDtype {
  const char* name;
  uint64_t bits;
};

/// All types of the format, in the order that the reference writer sorts by (descending).
inline constexpr SafetensorsDtype safetensors_dtypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64}};

inline constexpr const char* safetensors_metadata_key = "__metadata__";
inline constexpr uint64_t safetensors_max_header = 100'000'000;
inline constexpr size_t safetensors_max_tensors = 1'000'000;
inline constexpr size_t safetensors_max_rank = 8;
inline constexpr size_t safetensors_max_name = 4096;

/// Position in `safetensors_dtypes`, or -1.
inline int safetensors_dtype_index(std::string_view name) {
  const auto found = std::find_if(std::begin(safetensors_dtypes), std::end(safetensors_dtypes),
                                  [&](const auto& dtype) { return name == dtype.name; });
  if (found == std::end(safetensors_dtypes)) return -1;
  return static_cast<int>(found - std::begin(safetensors_dtypes));
}

struct SafetensorsEntry {
  std::string name;
  int dtype = -1;  // position in safetensors_dtypes
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in bytes from the start of the data
  uint64_t end = 0;
};

/// Text from a file for an error message: on one line, not too long, in UTF-8, and without anything
/// that a terminal would obey.
inline std::string shown(std::string_view text) {
  constexpr size_t most = 100;
  std::string result = "'";
  for (std::string_view rest = text; !rest.empty() && result.size() <= most;) {
    const size_t length = utf8_sequence_length(rest);
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(rest[i]); };
    const bool control = length == 1 && (byte(0) < 0x20 || byte(0) == 0x7F);
    const bool c1 = length == 2 && byte(0) == 0xC2 && byte(1) < 0xA0;
    // Line separators, and marks that turn the direction of what follows.
    const bool turns = length == 3 && byte(0) == 0xE2 &&
                       ((byte(1) == 0x80 && byte(2) >= 0xA8 && byte(2) <= 0xAE) ||
                        (byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9));
    const size_t taken = std::max<size_t>(length, 1);
    if (length == 0 || control || c1 || turns) {
      result += '?';
    } else if (result.size() + taken <= most + 1) {
      result += rest.substr(0, taken);
    } else {
      break;
    }
    rest.remove_prefix(taken);
  }
  return result + (text.size() > most ? "...'" : "'");
}

/// The bytes before the data: the length, the JSON text and spaces up to a multiple of 8.
inline std::string safetensors_header_bytes(const std::vector<SafetensorsEntry>& entries,
                                            const Metadata& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (json.back() != '{') json += ',';
      append_json_string(json, key);
      json += ':';
      append_json_string(json, value);
    }
    json += '}';
  }
  for (const auto& entry : entries) {
    if (json.size() > 1) json += ',';
    append_json_string(json, entry.name);
    json += std::string(":{\"dtype\":\"") + safetensors_dtypes[entry.dtype].name + "\",\"shape\":[";
    for (size_t i = 0; i < entry.shape.size(); ++i) {
      json += (i > 0 ? "," : "") + std::to_string(entry.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(entry.begin) + ',' + std::to_string(entry.end) +
            "]}";
  }
  json += '}';
  json.append((8 - json.size() % 8) % 8, ' ');
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes += static_cast<char>((static_cast<uint64_t>(json.size()) >> shift) & 0xFF);
  }
  return bytes + json;
}

}  // namespace detail
}  // namespace lightlora
