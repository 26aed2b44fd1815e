// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/safetensors_format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

// The part of the GGUF reader that judges untrusted bytes. Standard library only, so that the fuzzers
// exercise exactly the code that decides which bytes of a file a tensor may have.
//
// A GGUF file: magic, version, counts, keys with values of one of 13 types, the tensors' names, sizes
// (the innermost first), types and offsets, then their bytes, each tensor at a multiple of an
// alignment.

namespace lightlora::detail {

/// A fault in a GGUF file's bytes: one line without the file's name.
class GgufError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail_gguf(const std::string& expected, const std::string& got,
                                   const std::string& hint = "") {
  throw GgufError("expected " + expected + ", got " + got +
                  (hint.empty() ? "" : "; hint: " + hint));
}

/// How the numbers of a tensor lie in a file: so many of them in a block of so many bytes.
struct GgufType {
  uint32_t id;
  const char* name;
  uint64_t numbers, bytes;
};

/// All types that are read here.
inline constexpr GgufType gguf_types[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110}, {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210},
    {24, "I8", 1, 1},       {25, "I16", 1, 2},      {26, "I32", 1, 4},      {27, "I64", 1, 8},
    {28, "F64", 1, 8},      {30, "BF16", 1, 2}};

struct GgufEntry {
  std::string name;
  const GgufType* type = nullptr;
  std::vector<int64_t> shape;  // the outermost size first, as LibTorch has it
  uint64_t begin = 0;          // in bytes from the start of the data
  uint64_t end = 0;
};

struct GgufHeader {
  Metadata metadata;               // texts, numbers, and lists of up to 8 numbers
  std::vector<GgufEntry> tensors;  // in the order of their bytes
  uint64_t data_start = 0;         // in bytes from the start of the file
};

inline constexpr uint64_t gguf_most_keys = 100'000, gguf_most_list = 8;
inline constexpr std::size_t gguf_most_rank = 4;
inline constexpr uint64_t gguf_most_alignment = 1 << 20;
inline constexpr int gguf_most_nesting = 4;
/// Where ComfyUI-GGUF says the shape of a tensor that it laid out otherwise, before its name.
inline constexpr const char* gguf_shape_key = "comfy.gguf.orig_shape.";

/// Reads the header; what a count or a length says is compared with the bytes that are left before
/// anything is done so many times.
class GgufHeaderReader {
 public:
  explicit GgufHeaderReader(std::string_view file) : file_(file) {}

  GgufHeader read() {
    const auto tensors = read_start();
    for (uint64_t i = 0; i < keys_; ++i) read_key();
    for (uint64_t i = 0; i < tensors; ++i) read_tensor();
    header_.data_start = aligned(at_);
    check_bytes();
    return std::move(header_);
  }

 private:
  uint64_t left() const { return file_.size() - at_; }

  std::string_view bytes(uint64_t count, const char* what) {
    if (count > left()) {
      fail_gguf(std::to_string(count) + " bytes of " + what, "only " + std::to_string(left()),
                "the file is cut off; download or copy it again");
    }
    const auto part = file_.substr(at_, count);
    at_ += count;
    return part;
  }

  template <typename T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, bytes(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // How often something of at least `smallest` bytes follows.
  uint64_t count(uint64_t smallest, uint64_t most, const char* what) {
    const auto value = number<uint64_t>(what);
    if (value > most) {
      fail_gguf("at most " + std::to_string(most) + " " + what, std::to_string(value));
    }
    if (value > left() / smallest) {
      fail_gguf(std::to_string(value) + " " + what,
                "a file of " + std::to_string(file_.size()) + " bytes, which has no room for them",
                "the file is damaged or cut off");
    }
    return value;
  }

  std::string text(uint64_t most, const char* what) {
    const auto length = count(1, most, what);
    std::string value(bytes(length, what));
    if (!is_utf8(value) || value.find('\0') != value.npos) {
      fail_gguf(std::string("UTF-8 without NUL as ") + what, shown(value));
    }
    return value;
  }

  // Returns the number of tensors.
  uint64_t read_start() {
    if (bytes(4, "magic") != "GGUF") fail_gguf("a GGUF file", "another one");
    const auto version = number<uint32_t>("the version");
    if ((version & 0xFFFF) == 0) {
      fail_gguf("a little-endian GGUF file", "a big-endian one", "convert it again");
    }
    if (version != 2 && version != 3) {
      fail_gguf("GGUF version 2 or 3", "version " + std::to_string(version),
                "convert it again with a current program");
    }
    // A tensor has a name, sizes, a type and an offset; a key has a name, a type and a value.
    const auto tensors = count(24, safetensors_max_tensors, "tensors");
    keys_ = count(13, gguf_most_keys, "keys");
    return tensors;
  }

  void read_key() {
    const auto key = text(65'535, "the length of a key");
    const auto type = number<uint32_t>("the type of a value");
    const auto value = read_value(type, key, 0);
    if (key == "general.alignment") set_alignment(type, value);
    if (!header_.metadata.emplace(key, value).second) fail_gguf("each key once", shown(key));
  }

  void set_alignment(uint32_t type, const std::string& value) {
    constexpr uint32_t kUint32 = 4;
    const uint64_t wanted = type == kUint32 ? std::stoull(value) : 0;
    if (wanted == 0 || wanted > gguf_most_alignment || (wanted & (wanted - 1)) != 0) {
      fail_gguf(
          "a power of two up to " + std::to_string(gguf_most_alignment) + " as general.alignment",
          shown(value));
    }
    alignment_ = wanted;
  }

  template <typename T>
  std::string number_text() {
    return std::to_string(number<T>("a value"));
  }

  // A value as text; nothing of a long list.
  std::string read_value(uint32_t type, const std::string& key, int depth) {
    switch (type) {
      case 0:
        return number_text<uint8_t>();
      case 1:
        return number_text<int8_t>();
      case 2:
        return number_text<uint16_t>();
      case 3:
        return number_text<int16_t>();
      case 4:
        return number_text<uint32_t>();
      case 5:
        return number_text<int32_t>();
      case 6:
        return number_text<float>();
      case 7:
        return number<uint8_t>("a value") != 0 ? "true" : "false";
      case 8:
        return text(std::numeric_limits<uint64_t>::max(), "the length of a text");
      case 9:
        return read_list(key, depth);
      case 10:
        return number_text<uint64_t>();
      case 11:
        return number_text<int64_t>();
      case 12:
        return number_text<double>();
      default:
        fail_gguf("one of GGUF's 13 types for key " + shown(key), std::to_string(type),
                  "the file is damaged");
    }
  }

  std::string read_list(const std::string& key, int depth) {
    constexpr uint64_t kSmallest[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
    const auto type = number<uint32_t>("the type of a list");
    if (type > 12 || depth == gguf_most_nesting) {
      fail_gguf("a list of one of GGUF's types, at most " + std::to_string(gguf_most_nesting) +
                    " in each other, for key " + shown(key),
                "another one", "the file is damaged");
    }
    const auto length = count(kSmallest[type], std::numeric_limits<uint64_t>::max(), "list values");
    std::string all;
    for (uint64_t i = 0; i < length; ++i) {
      const auto value = read_value(type, key, depth + 1);
      if (length <= gguf_most_list) all += (i > 0 ? "," : "") + value;
    }
    return all;
  }

  void read_tensor() {
    GgufEntry entry;
    entry.name = text(safetensors_max_name, "the length of a tensor's name");
    if (entry.name.empty()) fail_gguf("names of tensors", "an empty one");
    if (!names_.insert(entry.name).second) fail_gguf("each tensor once", shown(entry.name));
    const auto rank = number<uint32_t>("the dimensions of a tensor");
    if (rank > gguf_most_rank) {
      fail_gguf("at most 4 dimensions of tensor " + shown(entry.name), std::to_string(rank));
    }
    for (uint32_t i = 0; i < rank; ++i) {
      const auto size = number<uint64_t>("a tensor's size");
      if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail_gguf("sizes of tensor " + shown(entry.name) + " that fit int64", std::to_string(size));
      }
      entry.shape.insert(entry.shape.begin(), static_cast<int64_t>(size));
    }
    const auto id = number<uint32_t>("the type of a tensor");
    entry.type = std::find_if(std::begin(gguf_types), std::end(gguf_types),
                              [&](const auto& type) { return type.id == id; });
    if (entry.type == std::end(gguf_types)) {
      fail_gguf("F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K for tensor " +
                    shown(entry.name),
                "type " + std::to_string(id), "convert it to one of these");
    }
    entry.begin = number<uint64_t>("the offset of a tensor");
    set_size(entry);
    restore_shape(entry);
    header_.tensors.push_back(std::move(entry));
  }

  static bool product_of(const std::vector<int64_t>& shape, uint64_t& product) {
    product = 1;
    uint64_t strides = 1;
    for (const int64_t size : shape) {
      const auto factor = static_cast<uint64_t>(size);
      constexpr auto most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
      if (factor != 0 && strides > most / factor) return false;
      strides *= factor != 0 ? factor : 1;
      product *= factor;
    }
    return true;
  }

  void set_size(GgufEntry& entry) const {
    const GgufType& type = *entry.type;
    uint64_t numbers = 0;
    if (!product_of(entry.shape, numbers) ||
        numbers / type.numbers > std::numeric_limits<uint64_t>::max() / type.bytes) {
      fail_gguf("a size of tensor " + shown(entry.name) + " that fits 63 bits", "an overflow");
    }
    const auto row = entry.shape.empty() ? 1 : static_cast<uint64_t>(entry.shape.back());
    if (row % type.numbers != 0) {
      fail_gguf("rows of whole blocks of " + std::to_string(type.numbers) + " numbers in tensor " +
                    shown(entry.name) + " (" + type.name + ")",
                "rows of " + std::to_string(row));
    }
    const uint64_t bytes = numbers / type.numbers * type.bytes;
    if (entry.begin % alignment_ != 0) {
      fail_gguf("tensor " + shown(entry.name) + " at a multiple of " + std::to_string(alignment_) +
                    " bytes",
                std::to_string(entry.begin));
    }
    if (bytes > std::numeric_limits<uint64_t>::max() - entry.begin) {
      fail_gguf("tensor " + shown(entry.name) + " inside the file", "one that ends elsewhere");
    }
    entry.end = entry.begin + bytes;
  }

  // ComfyUI-GGUF writes some tensors in rows of 256 numbers, and what they were as a key.
  void restore_shape(GgufEntry& entry) const {
    const auto found = header_.metadata.find(gguf_shape_key + entry.name);
    if (found == header_.metadata.end()) return;
    std::vector<int64_t> shape;
    const std::string& list = found->second;
    for (std::size_t i = 0; i < list.size() && shape.size() <= safetensors_max_rank;) {
      const auto comma = std::min(list.find(',', i), list.size());
      const auto digits = list.substr(i, comma - i);
      const bool number = !digits.empty() && digits.size() <= 18 &&
                          digits.find_first_not_of("0123456789") == digits.npos;
      shape.push_back(number ? std::stoll(digits) : -1);
      i = comma + 1;
    }
    const bool valid = !shape.empty() && shape.size() <= safetensors_max_rank &&
                       std::all_of(shape.begin(), shape.end(), [](int64_t n) { return n >= 0; });
    uint64_t before = 0, after = 0;
    if (!valid || !product_of(shape, after) || !product_of(entry.shape, before) ||
        before != after) {
      fail_gguf("a shape of as many numbers as tensor " + shown(entry.name) + " has in " +
                    gguf_shape_key + "...",
                shown(list));
    }
    entry.shape = shape;
  }

  uint64_t aligned(uint64_t at) const { return (at + alignment_ - 1) / alignment_ * alignment_; }

  // Demands that the tensors follow each other inside the file.
  void check_bytes() {
    auto& tensors = header_.tensors;
    std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    const uint64_t size = header_.data_start > file_.size() ? 0 : file_.size() - header_.data_start;
    uint64_t end = 0;
    for (const auto& tensor : tensors) {
      if (tensor.end > size) {
        fail_gguf(std::to_string(tensor.end) + " bytes of data", std::to_string(size),
                  "the file is cut off; download or copy it again");
      }
      if (tensor.begin != aligned(end)) {
        fail_gguf("tensor " + shown(tensor.name) + " where the one before ends, at " +
                      std::to_string(aligned(end)),
                  std::to_string(tensor.begin), "the file is damaged");
      }
      end = tensor.end;
    }
  }

  std::string_view file_;
  uint64_t at_ = 0, keys_ = 0, alignment_ = 32;
  std::set<std::string> names_;
  GgufHeader header_;
};

/// Whether a file begins as a GGUF file does.
inline bool is_gguf(std::string_view file) { return file.substr(0, 4) == "GGUF"; }

/// Header of the GGUF file with the bytes `file`, checked in full: every tensor's bytes lie in the file
/// and belong to it alone.
/// Errors: GgufError. No allocation exceeds a small multiple of the header's length.
inline GgufHeader parse_gguf_header(std::string_view file) { return GgufHeaderReader(file).read(); }

}  // namespace lightlora::detail
