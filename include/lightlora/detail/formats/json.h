// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <lightlora/detail/formats/json_reader.h>

namespace lightlora {

/// A JSON value. Objects keep their members in the order of the text; numbers keep their
/// characters.
/// Errors: JsonError (JsonFault::type) when a value is asked for as something that it is not.
class JsonValue {
 public:
  /// Values in order.
  using Array = std::vector<JsonValue>;
  /// Members in the order of the text.
  using Object = std::vector<std::pair<std::string, JsonValue>>;
  /// A number as its characters in JSON.
  struct Number {
    /// As it stands in the text, so that no digit is lost.
    std::string text;
  };

  JsonValue() = default;
  /// A boolean.
  JsonValue(bool value) : value_(value) {}
  /// A whole number.
  JsonValue(int value) : value_(Number{std::to_string(value)}) {}
  /// A whole number.
  JsonValue(int64_t value) : value_(Number{std::to_string(value)}) {}
  /// A number, as its shortest text.
  JsonValue(double value) : value_(Number{double_text(value)}) {}
  /// A number as text.
  JsonValue(Number value) : value_(std::move(value)) {}
  /// A string.
  JsonValue(std::string value) : value_(std::move(value)) {}
  /// A string.
  JsonValue(const char* value) : value_(std::string(value)) {}
  /// An array.
  JsonValue(Array value) : value_(std::move(value)) {}
  /// An object.
  JsonValue(Object value) : value_(std::move(value)) {}

  /// What it is.
  JsonType type() const { return static_cast<JsonType>(value_.index()); }
  /// Whether it is a null.
  bool is_null() const { return type() == JsonType::null; }

  /// The boolean.
  bool boolean() const { return get<bool>(JsonType::boolean); }
  /// The string.
  const std::string& string() const { return get<std::string>(JsonType::string); }
  /// The elements.
  const Array& array() const { return get<Array>(JsonType::array); }
  /// The members.
  const Object& object() const { return get<Object>(JsonType::object); }
  /// The number as it stands in the text.
  const std::string& number_text() const { return get<Number>(JsonType::number).text; }

  /// The number as an integer: no fraction, no exponent, in the range of int64.
  int64_t integer() const { return convert<int64_t>("an integer of 64 bits"); }
  /// The number as a finite double.
  double number() const { return convert<double>("a number in the range of a double"); }

  /// The member of that name, or nullptr.
  const JsonValue* find(std::string_view key) const {
    for (const auto& [name, value] : object()) {
      if (name == key) return &value;
    }
    return nullptr;
  }

  /// The member of that name; JsonError if there is none.
  const JsonValue& at(std::string_view key) const {
    const JsonValue* value = find(key);
    if (value == nullptr) {
      throw JsonError(JsonFault::type,
                      "expected the key '" + std::string(key) + "', got an object without it");
    }
    return *value;
  }

 private:
  template <typename T>
  const T& get(JsonType wanted) const {
    if (const T* value = std::get_if<T>(&value_)) return *value;
    throw JsonError(JsonFault::type, std::string("expected ") + json_type_name(wanted) + ", got " +
                                         json_type_name(type()));
  }

  template <typename T>
  T convert(const char* wanted) const {
    const std::string& text = number_text();
    T value{};
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end) {
      throw JsonError(JsonFault::type, std::string("expected ") + wanted + ", got " + text);
    }
    return value;
  }

  /// Shortest text that reads back as the same double, with ".0" as Python writes whole numbers.
  static std::string double_text(double value) {
    if (!std::isfinite(value)) {
      throw JsonError(JsonFault::type, "expected a finite number, got " + std::to_string(value));
    }
    char text[32];
    std::string result(text, std::to_chars(text, text + sizeof text, value).ptr);
    if (result.find_first_of(".e") == result.npos) result += ".0";
    return result;
  }

  std::variant<std::nullptr_t, bool, Number, std::string, Array, Object> value_;
};

namespace detail {

inline JsonValue read_json_value(JsonReader& reader) {
  switch (reader.peek()) {
    case JsonType::null:
      reader.null();
      return {};
    case JsonType::boolean:
      return JsonValue(reader.boolean());
    case JsonType::number:
      return JsonValue::Number{std::string(reader.number())};
    case JsonType::string:
      return reader.string();
    case JsonType::array: {
      JsonValue::Array array;
      reader.array([&] { array.push_back(read_json_value(reader)); });
      return JsonValue(std::move(array));
    }
    case JsonType::object:
      break;
  }
  JsonValue::Object object;
  reader.object([&](const std::string& key) { object.emplace_back(key, read_json_value(reader)); });
  return JsonValue(std::move(object));
}

}  // namespace detail

/// The value of a whole JSON text.
/// Errors: JsonError.
inline JsonValue parse_json(std::string_view text, JsonLimits limits = {}) {
  JsonReader reader(text, limits);
  JsonValue value = detail::read_json_value(reader);
  reader.finish();
  return value;
}

/// How a JSON text is laid out.
struct JsonStyle {
  size_t indent = 0;       ///< spaces for each level; 0 writes one line without any space
  bool sort_keys = false;  ///< members in the order of their keys' code points
  bool ascii = false;      ///< other characters as \u escapes, as Python's json.dumps does
};

/// Appends `text`, which must be UTF-8, as a JSON string with its quotes.
/// Errors: JsonError (JsonFault::encoding).
inline void append_json_string(std::string& json, std::string_view text, bool ascii = false) {
  static constexpr std::string_view special = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
  const auto append_hex = [&](uint32_t unit) {
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(unit & 0xFFFF));
    json += code;
  };
  json += '"';
  while (!text.empty()) {
    const size_t length = utf8_sequence_length(text), i = special.find(text[0]);
    if (length == 0) throw JsonError(JsonFault::encoding, "expected UTF-8, got other bytes");
    if (i != special.npos) {
      json += '\\';
      json += letters[i];
    } else if (length == 1 && static_cast<unsigned char>(text[0]) < 0x20) {
      append_hex(static_cast<unsigned char>(text[0]));
    } else if (length == 1 || !ascii) {
      json += text.substr(0, length);
    } else {
      uint32_t code = static_cast<unsigned char>(text[0]) & (0xFF >> (length + 1));
      for (size_t k = 1; k < length; ++k) {
        code = code << 6 | (static_cast<unsigned char>(text[k]) & 0x3F);
      }
      if (code >= 0x10000) append_hex(0xD800 + ((code - 0x10000) >> 10));
      append_hex(code >= 0x10000 ? 0xDC00 + ((code - 0x10000) & 0x3FF) : code);
    }
    text.remove_prefix(length);
  }
  json += '"';
}

namespace detail {

class JsonWriter {
 public:
  explicit JsonWriter(JsonStyle style) : style_(style) {}

  void write(const JsonValue& value) {
    switch (value.type()) {
      case JsonType::null:
        json += "null";
        return;
      case JsonType::boolean:
        json += value.boolean() ? "true" : "false";
        return;
      case JsonType::number:
        json += value.number_text();
        return;
      case JsonType::string:
        append_json_string(json, value.string(), style_.ascii);
        return;
      case JsonType::array:
        return items('[', ']', value.array(), [this](const JsonValue& item) { write(item); });
      case JsonType::object:
        return object(value.object());
    }
  }

  std::string json;

 private:
  void object(const JsonValue::Object& object) {
    std::vector<const std::pair<std::string, JsonValue>*> members;
    for (const auto& member : object) members.push_back(&member);
    if (style_.sort_keys) {
      std::stable_sort(members.begin(), members.end(),
                       [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    items('{', '}', members, [this](const auto* member) {
      append_json_string(json, member->first, style_.ascii);
      json += style_.indent > 0 ? ": " : ":";
      write(member->second);
    });
  }

  template <typename Items, typename WriteItem>
  void items(char opening, char closing, const Items& items, WriteItem&& write_item) {
    json += opening;
    ++depth_;
    bool first = true;
    for (const auto& item : items) {
      if (!first) json += ',';
      first = false;
      new_line();
      write_item(item);
    }
    --depth_;
    if (!first) new_line();
    json += closing;
  }

  void new_line() {
    if (style_.indent > 0) json.append(1, '\n').append(depth_ * style_.indent, ' ');
  }

  JsonStyle style_;
  size_t depth_ = 0;
};

}  // namespace detail

/// The JSON text of a value; `indent` 2 with `sort_keys` and `ascii` gives the bytes of Python's
/// `json.dumps(value, indent=2, sort_keys=True)`.
/// Errors: JsonError for strings that are not UTF-8.
inline std::string write_json(const JsonValue& value, JsonStyle style = {}) {
  detail::JsonWriter writer(style);
  writer.write(value);
  return std::move(writer.json);
}

}  // namespace lightlora
