// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <vector>

// A variant's own options as text, read and written by the table that the variant gives of them.

namespace lightlora::detail {

template <typename Number>
std::string number_text(Number value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

// Shortest decimal text that reads back as the same double.
inline std::string exact_text(double value) { return number_text(value); }

template <typename Value>
std::string value_text(const Value& value) {
  if constexpr (std::is_same_v<Value, bool>) {
    return value ? "1" : "0";
  } else if constexpr (std::is_arithmetic_v<Value>) {
    return number_text(value);
  } else if constexpr (std::is_enum_v<Value>) {
    return to_string(value);
  } else {
    std::string text;
    for (const auto& item : value) text += (text.empty() ? "" : " ") + number_text(item);
    return text;
  }
}

template <typename Number>
bool read_number(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, value);
  return !text.empty() && error == std::errc() && last == end;
}

// What was expected instead of the text; empty if it could be read.
template <typename Value>
std::string read_value(const std::string& text, Value& value) {
  const std::string got = ", got '" + text + "'";
  if constexpr (std::is_same_v<Value, bool>) {
    value = text == "1" || text == "true";
    return value || text == "0" || text == "false" ? "" : "expected true or false" + got;
  } else if constexpr (std::is_integral_v<Value>) {
    return read_number(text, value) ? "" : "expected a whole number" + got;
  } else if constexpr (std::is_floating_point_v<Value>) {
    return read_number(text, value) ? "" : "expected a number" + got;
  } else if constexpr (std::is_enum_v<Value>) {
    try {
      from_string(text, value);
      return "";
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
  } else {
    value.clear();
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find(' ', begin), text.size());
      if (!read_number(text.substr(begin, end - begin), value.emplace_back())) {
        return "expected whole numbers with spaces between them" + got;
      }
      begin = end + 1;
    }
    return "";
  }
}

// Calls `visit` with each line of the table; the shared options are no variant's own and have none.
template <typename Options, typename = void>
struct OptionTable {
  template <typename Visit>
  static void each(Visit) {}
};

template <typename Options>
struct OptionTable<Options, std::void_t<decltype(Options::fields())>> {
  template <typename Visit>
  static void each(Visit visit) {
    std::apply([&](const auto&... field) { (visit(field), ...); }, Options::fields());
  }
};

template <typename Options>
std::map<std::string, std::string> own_to_text(const Options& options) {
  std::map<std::string, std::string> own;
  const Options usual;
  OptionTable<Options>::each([&](const auto& field) {
    if (options.*field.value != usual.*field.value)
      own[field.name] = value_text(options.*field.value);
  });
  return own;
}

/// The variant's own options from their text.
/// Errors: c10::ValueError naming `where` for a name that the variant does not take, with those
///         that it does, or for text that is no such value
template <typename Options>
Options own_from_text(const std::map<std::string, std::string>& own, const std::string& where,
                      const std::string& variant) {
  Options options;
  std::map<std::string, std::string> rest = own;
  std::string known;
  OptionTable<Options>::each([&](const auto& field) {
    known += (known.empty() ? "" : ", ") + std::string(field.name);
    const auto found = rest.find(field.name);
    if (found == rest.end()) return;
    const std::string problem = read_value(found->second, options.*field.value);
    TORCH_CHECK_VALUE(problem.empty(), "'", where, "': ", field.name, ": ", problem);
    rest.erase(found);
  });
  TORCH_CHECK_VALUE(rest.empty(), "'", where, "': expected an option that the ", variant,
                    " variant takes",
                    known.empty() ? " (it has none of its own)" : " (" + known + ")", ", got '",
                    rest.begin()->first, "'");
  return options;
}

}  // namespace lightlora::detail
