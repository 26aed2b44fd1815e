// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

// Strict JSON (RFC 8259) for file headers, metadata and configuration files. It needs the standard
// library only, so that the parsers of untrusted bytes can be fuzzed without torch.

namespace lightlora {

/// What a JSON text was refused for.
enum class JsonFault { syntax, encoding, duplicate_key, limit, type };

/// Error of the JSON reader and of JsonValue: one line, "expected ..., got ... at byte N".
class JsonError : public std::runtime_error {
 public:
  /// The message is one line, ready to be shown.
  JsonError(JsonFault fault, const std::string& message)
      : std::runtime_error(message), fault_(fault) {}
  /// What kind of error it is.
  JsonFault fault() const { return fault_; }

 private:
  JsonFault fault_;
};

/// Bounds on what one text may ask for, so that a small hostile file cannot take much memory.
struct JsonLimits {
  int depth = 32;           ///< nested arrays and objects
  size_t keys = 1'000'001;  ///< keys of all objects that are open at one time
  size_t values = 1 << 20;  ///< values in the whole text
};

enum class JsonType { null, boolean, number, string, array, object };

/// The type's name with its article, for error messages.
inline const char* json_type_name(JsonType type) {
  static constexpr const char* names[] = {"null",     "true or false", "a number",
                                          "a string", "an array",      "an object"};
  return names[static_cast<int>(type)];
}

/// Length in bytes of the well-formed UTF-8 sequence that `text` begins with; 0 if it begins with
/// none (cut off, overlong, a surrogate, or above U+10FFFF).
inline size_t utf8_sequence_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  // The second byte's range is what excludes overlong forms, surrogates and U+110000 upwards.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

/// Reads one JSON text from front to back without building anything: the caller asks for the value
/// it expects next. Keys that are equal after unescaping are an error in every object.
/// Errors: JsonError with the byte position.
class JsonReader {
 public:
  /// Reads from `text`, which must outlive the reader.
  explicit JsonReader(std::string_view text, JsonLimits limits = {})
      : text_(text), limits_(limits) {
    if (text.substr(0, 3) == "\xEF\xBB\xBF") {
      fail(JsonFault::encoding, "JSON without a byte order mark", "a byte order mark");
    }
  }

  /// Type of the next value.
  JsonType peek() {
    skip_space();
    switch (position_ < text_.size() ? text_[position_] : '\0') {
      case '{':
        return JsonType::object;
      case '[':
        return JsonType::array;
      case '"':
        return JsonType::string;
      case 't':
      case 'f':
        return JsonType::boolean;
      case 'n':
        return JsonType::null;
      case '-':
      case '0':
      case '1':
      case '2':
      case '3':
      case '4':
      case '5':
      case '6':
      case '7':
      case '8':
      case '9':
        return JsonType::number;
      default:
        fail(JsonFault::syntax, "a JSON value", next_byte());
    }
  }

  /// Reads a null.
  void null() {
    begin(JsonType::null);
    literal("null");
  }

  /// Reads true or false.
  bool boolean() {
    begin(JsonType::boolean);
    const bool value = text_[position_] == 't';
    literal(value ? "true" : "false");
    return value;
  }

  /// The number's own characters: no precision is lost and the caller decides what it may be.
  std::string_view number() {
    begin(JsonType::number);
    const size_t start = position_;
    take('-');
    if (!take('0')) digits();
    if (take('.')) digits();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits();
    }
    return text_.substr(start, position_ - start);
  }

  /// Reads a string, unescaped.
  std::string string() {
    begin(JsonType::string);
    return quoted();
  }

  /// Calls `member(key)` for each member; it must read exactly one value.
  template <typename Member>
  void object(Member&& member) {
    begin(JsonType::object);
    open();
    std::set<std::string> keys;
    while (another('}', keys.empty())) {
      const size_t start = position_;
      if (position_ == text_.size() || text_[position_] != '"') {
        fail(JsonFault::syntax, "a key in quotes", next_byte());
      }
      const auto [key, is_new] = keys.insert(quoted());
      if (!is_new) {
        position_ = start;
        fail(JsonFault::duplicate_key, "each key once", "the same key again");
      }
      if (++open_keys_ > limits_.keys) {
        fail(JsonFault::limit, "at most " + std::to_string(limits_.keys) + " keys", "more");
      }
      skip_space();
      if (!take(':')) fail(JsonFault::syntax, "':'", next_byte());
      member(*key);
    }
    open_keys_ -= keys.size();
    --depth_;
  }

  /// Calls `element()` for each element; it must read exactly one value.
  template <typename Element>
  void array(Element&& element) {
    begin(JsonType::array);
    open();
    for (bool first = true; another(']', first); first = false) element();
    --depth_;
  }

  /// Checks and drops one value of any type.
  void skip() {
    switch (peek()) {
      case JsonType::null:
        return null();
      case JsonType::boolean:
        return static_cast<void>(boolean());
      case JsonType::number:
        return static_cast<void>(number());
      case JsonType::string:
        return static_cast<void>(string());
      case JsonType::array:
        return array([this] { skip(); });
      case JsonType::object:
        return object([this](const std::string&) { skip(); });
    }
  }

  /// Demands that only white space is left.
  void finish() {
    skip_space();
    if (position_ != text_.size()) {
      fail(JsonFault::syntax, "nothing after the JSON value", next_byte());
    }
  }

  /// Throws with the place in the text.
  [[noreturn]] void fail(JsonFault fault, const std::string& expected,
                         const std::string& got) const {
    throw JsonError(
        fault, "expected " + expected + ", got " + got + " at byte " + std::to_string(position_));
  }

 private:
  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\t' ||
                                        text_[position_] == '\n' || text_[position_] == '\r')) {
      ++position_;
    }
  }

  bool take(char wanted) {
    if (position_ == text_.size() || text_[position_] != wanted) return false;
    ++position_;
    return true;
  }

  void begin(JsonType wanted) {
    const JsonType got = peek();
    if (got != wanted) fail(JsonFault::type, json_type_name(wanted), json_type_name(got));
    if (++values_ > limits_.values) {
      fail(JsonFault::limit, "at most " + std::to_string(limits_.values) + " values", "more");
    }
  }

  void open() {
    if (++depth_ > limits_.depth) {
      fail(JsonFault::limit, "nesting of at most " + std::to_string(limits_.depth), "more");
    }
    ++position_;
  }

  /// True if the open container has another item, whose first character is next.
  bool another(char closing, bool first) {
    skip_space();
    if (take(closing)) return false;
    if (first) return true;
    if (!take(',')) {
      fail(JsonFault::syntax, std::string("',' or '") + closing + "'", next_byte());
    }
    skip_space();
    return true;
  }

  void literal(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) {
      fail(JsonFault::syntax, std::string(word), next_byte());
    }
    position_ += word.size();
  }

  void digits() {
    const size_t start = position_;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
      ++position_;
    }
    if (position_ == start) fail(JsonFault::syntax, "a digit", next_byte());
  }

  std::string quoted() {
    ++position_;
    std::string result;
    while (!take('"')) {
      const size_t length = utf8_sequence_length(text_.substr(position_));
      if (position_ == text_.size()) fail(JsonFault::syntax, "'\"'", next_byte());
      if (length == 0) fail(JsonFault::encoding, "UTF-8", next_byte());
      if (take('\\')) {
        escape(result);
      } else if (static_cast<unsigned char>(text_[position_]) < 0x20) {
        fail(JsonFault::syntax, "control characters escaped", next_byte());
      } else {
        result.append(text_.substr(position_, length));
        position_ += length;
      }
    }
    return result;
  }

  void escape(std::string& result) {
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    if (take('u')) return append_utf8(result, code_point());
    const size_t i = position_ < text_.size() ? letters.find(text_[position_]) : letters.npos;
    if (i == letters.npos) fail(JsonFault::syntax, "a JSON escape", next_byte());
    result += meanings[i];
    ++position_;
  }

  uint32_t code_point() {
    const uint32_t first = hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first <= 0xDBFF && take('\\') && take('u')) {
      const uint32_t second = hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) {
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
      }
    }
    fail(JsonFault::encoding, "surrogates in pairs", "a lone surrogate");
  }

  uint32_t hex4() {
    uint32_t value = 0;
    const std::string_view four = text_.substr(position_, 4);
    const auto [end, error] = std::from_chars(four.data(), four.data() + four.size(), value, 16);
    if (four.size() < 4 || error != std::errc() || end != four.data() + 4) {
      fail(JsonFault::syntax, "four hexadecimal digits", next_byte());
    }
    position_ += 4;
    return value;
  }

  static void append_utf8(std::string& result, uint32_t code) {
    const auto tail = [&](int shift) {
      result += static_cast<char>(0x80 | ((code >> shift) & 0x3F));
    };
    if (code < 0x80) {
      result += static_cast<char>(code);
    } else if (code < 0x800) {
      result += static_cast<char>(0xC0 | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      result += static_cast<char>(0xE0 | (code >> 12));
      tail(6);
      tail(0);
    } else {
      result += static_cast<char>(0xF0 | (code >> 18));
      tail(12);
      tail(6);
      tail(0);
    }
  }

  std::string next_byte() const {
    if (position_ >= text_.size()) return "the end of the text";
    const auto byte = static_cast<unsigned char>(text_[position_]);
    if (byte > 0x20 && byte < 0x7F) return std::string("'") + text_[position_] + "'";
    char code[16];
    std::snprintf(code, sizeof code, "byte 0x%02x", byte);
    return code;
  }

  std::string_view text_;
  JsonLimits limits_;
  size_t position_ = 0;
  int depth_ = 0;
  size_t open_keys_ = 0;
  size_t values_ = 0;
};

}  // namespace lightlora
