// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/safetensors_format.h>
#include <lightlora/detail/formats/zip.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What a pickle of tensors can hold, and the few names that may occur in it.

namespace lightlora::detail {

/// A tensor in a pickle: where its values lie, in elements of its storage.
struct PickledTensor {
  std::string storage;        ///< the key of its storage, an entry's name in the archive
  const char* dtype = "";     ///< safetensors' name of the type
  uint64_t storage_size = 0;  ///< elements of the whole storage
  uint64_t offset = 0;
  std::vector<int64_t> sizes, strides;
};

enum class PickleKind {
  none,
  boolean,
  integer,
  real,
  text,
  list,     ///< also tuples
  dict,     ///< `items` are key, value, key, value, ...
  name,     ///< a class or function of `pickle_names`
  storage,  ///< a storage, as a tensor without sizes
  tensor,
  opaque  ///< a value that is read over
};

// Values refer to each other by position, so that no depth of nesting and no cycle of a hostile
// file costs more than its bytes.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  int64_t integer = 0;  ///< also booleans; the position of a tensor or a storage
  double real = 0;
  std::string text;  ///< also the name of a class
  std::vector<uint32_t> items;
};

inline PickleValue integer_value(int64_t integer, PickleKind kind = PickleKind::integer) {
  PickleValue result;
  result.kind = kind;
  result.integer = integer;
  return result;
}

inline PickleValue opaque_value() { return integer_value(0, PickleKind::opaque); }

// Two's complement, little-endian; a number beyond 64 bits is of no use here.
inline PickleValue long_value(std::string_view digits) {
  if (digits.size() > 8) return opaque_value();
  uint64_t bits = 0;
  for (std::size_t i = digits.size(); i-- > 0;) {
    bits = bits << 8 | static_cast<unsigned char>(digits[i]);
  }
  if (!digits.empty() && digits.size() < 8 && (digits.back() & 0x80) != 0) {
    bits |= ~uint64_t{0} << (8 * digits.size());
  }
  return integer_value(static_cast<int64_t>(bits));
}

inline PickleValue real_value(std::string_view bytes) {
  uint64_t bits = 0;
  for (const char c : bytes) bits = bits << 8 | static_cast<unsigned char>(c);
  PickleValue result;
  result.kind = PickleKind::real;
  std::memcpy(&result.real, &bits, sizeof(bits));
  return result;
}

inline PickleValue text_value(std::string_view text, bool unicode) {
  if (!is_utf8(text)) {
    if (unicode) throw ArchiveError("expected texts in UTF-8, got other bytes");
    return opaque_value();
  }
  PickleValue result;
  result.kind = PickleKind::text;
  result.text = std::string(text);
  return result;
}

inline PickleValue container_value(PickleKind kind, std::vector<uint32_t> items) {
  PickleValue result;
  result.kind = kind;
  result.items = std::move(items);
  return result;
}

/// What an unpickled class or function name may be used for.
enum class PickleName { refused, dict, parameter_dict, tensor, parameter, opaque };

// The safe names: each is understood here, or read over without a use for it. `opaque` ones occur
// in checkpoints of trainers, beside the tensors.
inline PickleName pickle_name(std::string_view name) {
  static const std::map<std::string_view, PickleName> names{
      {"collections.OrderedDict", PickleName::dict},
      {"torch.nn.modules.container.ParameterDict", PickleName::parameter_dict},
      {"torch._utils._rebuild_tensor_v2", PickleName::tensor},
      {"torch._utils._rebuild_parameter", PickleName::parameter},
      {"torch.Size", PickleName::opaque},
      {"torch.device", PickleName::opaque},
      {"numpy.dtype", PickleName::opaque},
      {"numpy.core.multiarray.scalar", PickleName::opaque},
      {"numpy._core.multiarray.scalar", PickleName::opaque},
      {"_codecs.encode", PickleName::opaque},
      {"__builtin__.set", PickleName::opaque},
      {"builtins.set", PickleName::opaque},
      {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", PickleName::opaque}};
  const auto found = names.find(name);
  return found == names.end() ? PickleName::refused : found->second;
}

/// safetensors' name of the type of a storage class, or null.
inline const char* pickled_dtype(std::string_view storage_class) {
  static const std::map<std::string_view, const char*> types{
      {"torch.FloatStorage", "F32"},     {"torch.HalfStorage", "F16"},
      {"torch.BFloat16Storage", "BF16"}, {"torch.DoubleStorage", "F64"},
      {"torch.LongStorage", "I64"},      {"torch.IntStorage", "I32"},
      {"torch.ShortStorage", "I16"},     {"torch.CharStorage", "I8"},
      {"torch.ByteStorage", "U8"},       {"torch.BoolStorage", "BOOL"}};
  const auto found = types.find(storage_class);
  return found == types.end() ? nullptr : found->second;
}

/// Everything that a pickle holds; `root` is the value that was saved.
struct Pickle {
  std::deque<PickleValue> values;
  std::vector<PickledTensor> tensors;
  uint32_t root = 0;
};

/// The named leaves of a pickle: dictionaries' keys and lists' positions, joined by dots.
struct PickleLeaves {
  std::vector<std::pair<std::string, uint32_t>>
      tensors;     ///< name and position in `Pickle::tensors`
  Metadata texts;  ///< texts and numbers
};

/// Errors: ArchiveError if a file refers to its own texts so often that its names would take far
///         more memory than it
class PickleFlattener {
 public:
  explicit PickleFlattener(const Pickle& pickle) : pickle_(pickle), seen_(pickle.values.size()) {}

  PickleLeaves leaves() {
    visit("", pickle_.root, 0);
    return std::move(leaves_);
  }

 private:
  static constexpr std::size_t kMostBytes = 32'000'000;  // of all names and texts

  void spend(std::size_t bytes) {
    spent_ += std::min(bytes, kMostBytes) + 16;
    if (spent_ > kMostBytes) {
      throw ArchiveError(
          "expected names and texts of at most 32 MB, got a pickle that repeats its own");
    }
  }

  std::string joined(const std::string& prefix, const std::string& key) {
    spend(prefix.size() + key.size());
    return prefix + key;
  }

  void visit(const std::string& name, uint32_t at, int depth) {
    const PickleValue& value = pickle_.values[at];
    switch (value.kind) {
      case PickleKind::tensor:
        leaves_.tensors.emplace_back(name, static_cast<uint32_t>(value.integer));
        return;
      case PickleKind::text:
        spend(value.text.size());
        leaves_.texts.emplace(name, value.text);
        return;
      case PickleKind::integer:
        leaves_.texts.emplace(name, std::to_string(value.integer));
        return;
      case PickleKind::list:
      case PickleKind::dict:
        break;
      default:
        return;
    }
    // A container that holds itself, or another one twice, is read once.
    if (seen_[at] || depth > 32) return;
    seen_[at] = true;
    const std::string prefix = name.empty() ? "" : name + ".";
    if (value.kind == PickleKind::list) {
      for (std::size_t i = 0; i < value.items.size(); ++i) {
        visit(joined(prefix, std::to_string(i)), value.items[i], depth + 1);
      }
      return;
    }
    for (std::size_t i = 0; i + 1 < value.items.size(); i += 2) {
      const PickleValue& key = pickle_.values[value.items[i]];
      if (key.kind == PickleKind::text) {
        visit(joined(prefix, key.text), value.items[i + 1], depth + 1);
      } else if (key.kind == PickleKind::integer) {
        visit(joined(prefix, std::to_string(key.integer)), value.items[i + 1], depth + 1);
      }
    }
  }

  const Pickle& pickle_;
  std::vector<bool> seen_;
  std::size_t spent_ = 0;
  PickleLeaves leaves_;
};

}  // namespace lightlora::detail
