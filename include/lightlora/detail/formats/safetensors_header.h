// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/file_kind.h>
#include <lightlora/detail/formats/json_reader.h>
#include <lightlora/detail/formats/safetensors_format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

// The part of the safetensors reader that judges untrusted bytes. Standard library only, so that
// the fuzzers exercise exactly the code that decides which bytes of a file a tensor may have.

namespace lightlora::detail {

struct SafetensorsHeader {
  Metadata metadata;
  std::vector<SafetensorsEntry> tensors;  // in the order of their bytes, then of their names
  uint64_t data_start = 0;                // in bytes from the start of the file
  uint64_t trailing_bytes = 0;            // behind the last tensor, if these are allowed
};

[[noreturn]] inline void fail_header(SafetensorsFault fault, const std::string& expected,
                                     const std::string& got, const std::string& hint = "") {
  throw SafetensorsHeaderError(
      fault, "expected " + expected + ", got " + got + (hint.empty() ? "" : "; hint: " + hint));
}

/// Whether `factor * value` fits 64 bits; if so, `value` becomes the product.
inline bool multiply_checked(uint64_t& value, uint64_t factor) {
  if (factor != 0 && value > std::numeric_limits<uint64_t>::max() / factor) return false;
  value *= factor;
  return true;
}

/// Reads one header; `tensors` come out in the order of the text and not yet checked as a whole.
class SafetensorsHeaderReader {
 public:
  explicit SafetensorsHeaderReader(std::string_view json) : reader_(json, json_limits()) {}

  SafetensorsHeader read() {
    reader_.object([this](const std::string& key) {
      if (key == safetensors_metadata_key) return read_metadata();
      header_.tensors.push_back(read_entry(key));
    });
    reader_.finish();
    return std::move(header_);
  }

 private:
  static JsonLimits json_limits() {
    JsonLimits limits;
    // An entry of the highest rank has 16 values, and the format's limits decide before these do.
    limits.values = 2 * 16 * safetensors_max_tensors;
    limits.keys = safetensors_max_tensors + 100'000;
    return limits;
  }

  void read_metadata() {
    const auto check = [this](JsonType wanted, const std::string& what) {
      const JsonType got = reader_.peek();
      if (got == wanted) return;
      fail_header(SafetensorsFault::metadata, json_type_name(wanted) + what, json_type_name(got));
    };
    if (reader_.peek() == JsonType::null) return reader_.null();  // as the reference: absent
    check(JsonType::object, " as __metadata__");
    reader_.object([&](const std::string& key) {
      check(JsonType::string, " as metadata " + shown(key));
      header_.metadata[key] = reader_.string();
    });
  }

  SafetensorsEntry read_entry(const std::string& name) {
    if (name.empty() || name.find('\0') != name.npos) {
      fail_header(SafetensorsFault::name, "tensor names that are not empty and have no NUL",
                  shown(name));
    }
    if (name.size() > safetensors_max_name) {
      fail_header(SafetensorsFault::limit, "tensor names of at most 4096 bytes", shown(name));
    }
    if (header_.tensors.size() == safetensors_max_tensors) {
      fail_header(SafetensorsFault::limit, "at most 1000000 tensors", "more");
    }
    SafetensorsEntry entry;
    entry.name = name;
    if (reader_.peek() != JsonType::object) {
      fail_header(SafetensorsFault::entry, "an object as the entry of tensor " + shown(name),
                  json_type_name(reader_.peek()));
    }
    std::set<std::string> missing{"dtype", "shape", "data_offsets"};
    reader_.object([&](const std::string& field) {
      // Fields of later versions are ignored, as the reference does.
      if (missing.erase(field) == 0) return reader_.skip();
      if (field == "dtype") read_dtype(entry);
      if (field == "shape") read_shape(entry);
      if (field == "data_offsets") read_offsets(entry);
    });
    if (!missing.empty()) {
      fail_header(SafetensorsFault::entry,
                  "the field '" + *missing.begin() + "' of tensor " + shown(name),
                  "an entry without it");
    }
    check_size(entry);
    return entry;
  }

  void read_dtype(SafetensorsEntry& entry) {
    if (reader_.peek() != JsonType::string) {
      fail_header(SafetensorsFault::unknown_dtype,
                  "a string as dtype of tensor " + shown(entry.name),
                  json_type_name(reader_.peek()));
    }
    const std::string dtype = reader_.string();
    entry.dtype = safetensors_dtype_index(dtype);
    if (entry.dtype < 0) {
      fail_header(SafetensorsFault::unknown_dtype,
                  "a safetensors dtype for tensor " + shown(entry.name), shown(dtype));
    }
  }

  void read_shape(SafetensorsEntry& entry) {
    sizes_ = read_integers(SafetensorsFault::shape, "shape", entry.name);
    if (sizes_.size() > safetensors_max_rank) {
      fail_header(SafetensorsFault::limit, "at most 8 dimensions of tensor " + shown(entry.name),
                  "more");
    }
  }

  void read_offsets(SafetensorsEntry& entry) {
    const auto offsets = read_integers(SafetensorsFault::offsets, "data_offsets", entry.name);
    if (offsets.size() != 2) {
      fail_header(SafetensorsFault::offsets, "two data_offsets of tensor " + shown(entry.name),
                  offsets.size() > safetensors_max_rank ? "more" : std::to_string(offsets.size()));
    }
    entry.begin = offsets[0];
    entry.end = offsets[1];
    if (entry.begin > entry.end) {
      fail_header(SafetensorsFault::offsets,
                  "data_offsets of tensor " + shown(entry.name) + " in rising order",
                  std::to_string(entry.begin) + " before " + std::to_string(entry.end));
    }
  }

  /// An array of unsigned integers of 64 bits, cut off after one more than any caller accepts.
  std::vector<uint64_t> read_integers(SafetensorsFault fault, const std::string& field,
                                      const std::string& name) {
    const std::string where = " in the " + field + " of tensor " + shown(name);
    if (reader_.peek() != JsonType::array) {
      fail_header(fault, "an array as the " + field + " of tensor " + shown(name),
                  json_type_name(reader_.peek()));
    }
    std::vector<uint64_t> values;
    reader_.array([&] {
      if (reader_.peek() != JsonType::number) {
        fail_header(fault, "unsigned integers" + where, json_type_name(reader_.peek()));
      }
      const std::string_view text = reader_.number();
      uint64_t value = 0;
      for (const char digit : text) {
        if (digit < '0' || digit > '9') {
          fail_header(fault, "unsigned integers" + where, shown(text));
        }
        const auto units = static_cast<uint64_t>(digit - '0');
        if (!multiply_checked(value, 10) || value > std::numeric_limits<uint64_t>::max() - units) {
          fail_header(SafetensorsFault::overflow, "integers of 64 bits" + where, shown(text));
        }
        value += units;
      }
      if (values.size() <= safetensors_max_rank) values.push_back(value);
    });
    return values;
  }

  /// Demands that dtype and shape need as many bytes as the offsets span.
  void check_size(SafetensorsEntry& entry) const {
    const SafetensorsDtype& dtype = safetensors_dtypes[entry.dtype];
    uint64_t bits = 1, strides = 1;
    bool fits = true, fits_int64 = true;
    for (const uint64_t size : sizes_) {
      fits = fits && multiply_checked(bits, size);
      // LibTorch computes strides in int64 with empty dimensions counted as 1.
      fits_int64 = fits_int64 && multiply_checked(strides, std::max<uint64_t>(size, 1));
      entry.shape.push_back(static_cast<int64_t>(size));
    }
    if (!fits || !multiply_checked(bits, dtype.bits)) {
      fail_header(SafetensorsFault::overflow,
                  "a size of tensor " + shown(entry.name) + " that fits 64 bits", "an overflow");
    }
    if (bits % 8 != 0 || bits / 8 != entry.end - entry.begin) {
      fail_header(SafetensorsFault::byte_count,
                  std::to_string(bits / 8) + (bits % 8 != 0 ? " and a fraction" : "") +
                      " bytes of " + dtype.name + " for tensor " + shown(entry.name),
                  std::to_string(entry.end - entry.begin));
    }
    if (!fits_int64 || strides > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail_header(SafetensorsFault::overflow,
                  "dimensions of tensor " + shown(entry.name) + " that fit int64", "larger ones");
    }
  }

  JsonReader reader_;
  SafetensorsHeader header_;
  std::vector<uint64_t> sizes_;
};

/// Header in the JSON text `json`, with errors of the text as faults of the file.
inline SafetensorsHeader read_header_text(std::string_view json) {
  try {
    return SafetensorsHeaderReader(json).read();
  } catch (const JsonError& error) {
    auto fault = SafetensorsFault::header_syntax;
    if (error.fault() == JsonFault::encoding) fault = SafetensorsFault::header_encoding;
    if (error.fault() == JsonFault::duplicate_key) fault = SafetensorsFault::duplicate_key;
    if (error.fault() == JsonFault::limit) fault = SafetensorsFault::limit;
    throw SafetensorsHeaderError(fault, std::string(error.what()) + " of the header");
  }
}

/// Sorts the tensors by their bytes and demands that they cover `data_size` bytes exactly: no hole,
/// no overlap, nothing behind them unless that is allowed.
inline void check_coverage(SafetensorsHeader& header, uint64_t data_size,
                           bool allow_trailing_bytes) {
  auto& tensors = header.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t end = 0;
  for (const auto& tensor : tensors) {
    if (tensor.begin != end) {
      fail_header(
          tensor.begin > end ? SafetensorsFault::hole : SafetensorsFault::overlap,
          "tensor " + shown(tensor.name) + " to begin where the one before ends, at " +
              std::to_string(end),
          std::to_string(tensor.begin) + (tensor.begin > end ? " (a hole)" : " (an overlap)"));
    }
    end = tensor.end;
  }
  if (end > data_size) {
    fail_header(SafetensorsFault::truncated, std::to_string(end) + " bytes of data",
                std::to_string(data_size), "the file is cut off; download or copy it again");
  }
  header.trailing_bytes = data_size - end;
  if (header.trailing_bytes > 0 && !allow_trailing_bytes) {
    fail_header(SafetensorsFault::trailing_bytes, std::to_string(end) + " bytes of data",
                std::to_string(data_size) + " (" + std::to_string(header.trailing_bytes) +
                    " behind the last tensor)",
                "read it with SafetensorsOptions().allow_trailing_bytes(true)");
  }
}

/// Header of the safetensors file with the bytes `file`, checked in full: every tensor's bytes lie
/// in the file and belong to it alone.
/// Errors: SafetensorsHeaderError. No allocation exceeds a small multiple of the header's length.
inline SafetensorsHeader parse_safetensors_header(std::string_view file,
                                                  bool allow_trailing_bytes) {
  const auto refuse = [&](SafetensorsFault fault, const std::string& expected,
                          const std::string& got, const char* hint) {
    if (const auto kind = other_file_kind(file.substr(0, 4096))) {
      fail_header(SafetensorsFault::other_kind, "a safetensors file", kind->name, kind->hint);
    }
    fail_header(fault, expected, got, hint);
  };
  if (file.size() < 8) {
    refuse(SafetensorsFault::header_length, "at least 8 bytes", std::to_string(file.size()),
           "download it again");
  }
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(file[i]);
  if (length < 2 || length > safetensors_max_header) {
    refuse(SafetensorsFault::header_length, "a header of 2 to 100000000 bytes",
           std::to_string(length), "this is no safetensors file");
  }
  if (length > file.size() - 8) {
    refuse(SafetensorsFault::truncated, "a header of " + std::to_string(length) + " bytes",
           "only " + std::to_string(file.size() - 8),
           "the file is cut off; download or copy it again");
  }
  SafetensorsHeader header = read_header_text(file.substr(8, length));
  header.data_start = 8 + length;
  check_coverage(header, file.size() - header.data_start, allow_trailing_bytes);
  return header;
}

}  // namespace lightlora::detail
