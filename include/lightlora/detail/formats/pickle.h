// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/pickle_machine.h>
#include <lightlora/detail/formats/pickle_values.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A pickle machine that can build nothing but dictionaries, lists, numbers, texts and tensors.
// Python's own runs whatever functions a file names, which is why a file from a stranger must not
// be given to it. Standard library only.

namespace lightlora::detail {

class PickleReader : private PickleMachine {
 public:
  explicit PickleReader(std::string_view bytes) : PickleMachine(bytes) {}

  /// Errors: ArchiveError for a name that is not among the safe ones, for an instruction that
  /// tensor files do not need, and for anything malformed
  Pickle read() {
    while (step()) {
    }
    return std::move(pickle_);
  }

 private:
  // One instruction; false at the end.
  bool step() {
    const auto code = static_cast<unsigned char>(take(1)[0]);
    if (code == '.') {
      pickle_.root = pop();
      return false;
    }
    if (!(literal(code) || container(code) || memo(code) || construct(code))) {
      char text[8];
      std::snprintf(text, sizeof(text), "0x%02x", code);
      fail("a pickle of tensors only", std::string("the instruction ") + text);
    }
    return true;
  }

  static void check_protocol(uint64_t version) {
    if (version < 2 || version > 5) fail("pickle protocol 2 to 5", std::to_string(version));
  }

  bool literal(unsigned char code) {
    switch (code) {
      case 0x80:  // PROTO
        check_protocol(number(1));
        return true;
      case 0x95:  // FRAME
        take(8);
        return true;
      case 'N':
        push({});
        return true;
      case 0x88:
      case 0x89:
        push(integer_value(code == 0x88, PickleKind::boolean));
        return true;
      case 'K':
        push(integer_value(static_cast<int64_t>(number(1))));
        return true;
      case 'M':
        push(integer_value(static_cast<int64_t>(number(2))));
        return true;
      case 'J':
        push(integer_value(static_cast<int32_t>(number(4))));
        return true;
      case 0x8A:
        push(long_value(take(number(1))));
        return true;
      case 'G':
        push(real_value(take(8)));
        return true;
      case 'X':
      case 'T':
        push(text_value(take(number(4)), code == 'X'));
        return true;
      case 0x8C:
      case 'U':
        push(text_value(take(number(1)), code == 0x8C));
        return true;
      case 'B':
        take(number(4));
        push(opaque_value());
        return true;
      case 'C':
        take(number(1));
        push(opaque_value());
        return true;
      default:
        return false;
    }
  }

  bool container(unsigned char code) {
    switch (code) {
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case '}':
        push(container_value(PickleKind::dict, {}));
        return true;
      case ']':
      case ')':
        push(container_value(PickleKind::list, {}));
        return true;
      case 't':
      case 'l':
        push(container_value(PickleKind::list, pop_to_mark()));
        return true;
      case 'd': {
        auto items = pop_to_mark();
        if (items.size() % 2 != 0) malformed("a key without a value");
        push(container_value(PickleKind::dict, std::move(items)));
        return true;
      }
      case 0x85:
      case 0x86:
      case 0x87:
        push(container_value(PickleKind::list, pop_many(code - 0x84u)));
        return true;
      case 'a':
        extend(PickleKind::list, pop_many(1));
        return true;
      case 's':
        extend(PickleKind::dict, pop_many(2));
        return true;
      case 'e':
        extend(PickleKind::list, pop_to_mark());
        return true;
      case 'u':
        extend(PickleKind::dict, pop_to_mark());
        return true;
      default:
        return false;
    }
  }

  bool memo(unsigned char code) {
    switch (code) {
      case 'q':
        memo_[number(1)] = top();
        return true;
      case 'r':
        memo_[number(4)] = top();
        return true;
      case 0x94:
        memo_.emplace(memo_.size(), top());
        return true;
      case 'h':
        recall(number(1));
        return true;
      case 'j':
        recall(number(4));
        return true;
      default:
        return false;
    }
  }

  bool construct(unsigned char code) {
    switch (code) {
      case 'c': {
        const std::string module(line());
        global(module + "." + std::string(line()));
        return true;
      }
      case 0x93: {
        const auto names = pop_many(2);
        global(text_of(names[0]) + "." + text_of(names[1]));
        return true;
      }
      case 'Q':
        push(storage_value(items_of(pop())));
        return true;
      case 'R':
      case 0x81: {
        const auto call = pop_many(2);
        push(call_value(call[0], items_of(call[1])));
        return true;
      }
      case 'b': {
        const auto state = pop();
        build(value(top()), state);
        return true;
      }
      default:
        return false;
    }
  }

  void global(const std::string& name) {
    PickleValue result;
    result.kind = PickleKind::name;
    if (pickle_name(name) == PickleName::refused && pickled_dtype(name) == nullptr) {
      throw ArchiveError("expected a file of tensors only, got one that calls " + shown(name) +
                         ", which is refused because a pickle can run any program; hint: save the "
                         "tensors as safetensors where you trust the file");
    }
    result.text = name;
    push(std::move(result));
  }

  // What calling a safe name with these arguments gives.
  PickleValue call_value(Index callee, const std::vector<Index>& arguments) {
    if (value(callee).kind != PickleKind::name) malformed("a call of something without a name");
    switch (pickle_name(value(callee).text)) {
      case PickleName::dict:
        // Older files give an OrderedDict its pairs as one list.
        return container_value(PickleKind::dict,
                               arguments.empty() ? std::vector<Index>{} : pairs(arguments[0]));
      case PickleName::parameter_dict:
        return container_value(PickleKind::dict, {});
      case PickleName::tensor:
        return tensor_value(arguments);
      case PickleName::parameter:
        if (arguments.empty() || value(arguments[0]).kind != PickleKind::tensor) {
          malformed("a parameter without a tensor");
        }
        return value(arguments[0]);
      case PickleName::opaque:
        return opaque_value();
      default:
        malformed("a call of a type");
    }
  }

  // The state of an object, of which only a ParameterDict's parameters matter.
  void build(PickleValue& object, Index state) {
    if (object.kind == PickleKind::opaque) return;
    if (object.kind != PickleKind::dict) malformed("a state for something other than an object");
    if (value(state).kind != PickleKind::dict) return;
    const auto& entries = value(state).items;
    for (std::size_t i = 0; i + 1 < entries.size(); i += 2) {
      const PickleValue& key = value(entries[i]);
      const PickleValue& parameters = value(entries[i + 1]);
      if (key.kind != PickleKind::text || key.text != "_parameters") continue;
      if (parameters.kind != PickleKind::dict) continue;
      spend(parameters.items.size());
      object.items = std::vector<Index>(parameters.items);
      return;
    }
  }

  PickleValue storage_value(const std::vector<Index>& id) {
    if (id.size() < 5 || text_of(id[0]) != "storage") malformed("an unknown persistent id");
    const PickleValue& type = value(id[1]);
    const char* dtype = type.kind == PickleKind::name ? pickled_dtype(type.text) : nullptr;
    if (dtype == nullptr) fail("a storage of a known type", shown(type.text));
    PickledTensor storage;
    storage.storage = text_of(id[2]);  // a number, of which each tensor gets a copy
    if (storage.storage.size() > 64) malformed("a long name of a storage");
    storage.dtype = dtype;
    storage.storage_size = static_cast<uint64_t>(natural(id[4]));
    return tensor_node(PickleKind::storage, std::move(storage));
  }

  // torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, ...)
  PickleValue tensor_value(const std::vector<Index>& arguments) {
    if (arguments.size() < 4 || value(arguments[0]).kind != PickleKind::storage) {
      malformed("a tensor without a storage");
    }
    PickledTensor tensor = pickle_.tensors[static_cast<std::size_t>(value(arguments[0]).integer)];
    tensor.offset = static_cast<uint64_t>(natural(arguments[1]));
    const auto &sizes = items_of(arguments[2]), &strides = items_of(arguments[3]);
    if (sizes.size() != strides.size() || sizes.size() > safetensors_max_rank) {
      malformed("sizes and strides that do not fit");
    }
    for (const Index item : sizes) tensor.sizes.push_back(natural(item));
    for (const Index item : strides) tensor.strides.push_back(natural(item));
    check_extent(tensor);
    return tensor_node(PickleKind::tensor, std::move(tensor));
  }

  // No element may lie outside of the storage, and a tensor may not be larger than it.
  static void check_extent(const PickledTensor& tensor) {
    long double last = static_cast<long double>(tensor.offset), count = 1;
    for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
      count *= static_cast<long double>(tensor.sizes[i]);
      last += static_cast<long double>(tensor.strides[i]) *
              static_cast<long double>(tensor.sizes[i] - 1);
    }
    const auto size = static_cast<long double>(tensor.storage_size);
    if (count > 0 && (last >= size || count > size)) {
      fail("a tensor inside its storage of " + std::to_string(tensor.storage_size) + " values",
           "one that reaches beyond it");
    }
    if (count == 0) {
      for (const int64_t dim : tensor.sizes) {
        if (dim > (int64_t{1} << 40)) malformed("a size that is too large");
      }
    }
  }

  PickleValue tensor_node(PickleKind kind, PickledTensor tensor) {
    PickleValue result = integer_value(static_cast<int64_t>(pickle_.tensors.size()), kind);
    pickle_.tensors.push_back(std::move(tensor));
    return result;
  }

  std::vector<Index> pairs(Index list) {
    std::vector<Index> result;
    for (const Index pair : items_of(list)) {
      const auto& items = items_of(pair);
      if (items.size() != 2) malformed("a pair of other than two");
      result.insert(result.end(), items.begin(), items.end());
    }
    spend(result.size());
    return result;
  }
};

/// The values of a pickle that holds nothing but data.
/// Errors: ArchiveError, one line
inline Pickle read_pickle(std::string_view bytes) { return PickleReader(bytes).read(); }

}  // namespace lightlora::detail
