// SPDX-License-Identifier: Apache-2.0
// Writes the files of figures that report.py reads.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace measure {

/// One JSON object; its fields keep their order.
class Json {
 public:
  Json& add(const std::string& name, const std::string& text) { return raw(name, quoted(text)); }
  Json& add(const std::string& name, const char* text) { return add(name, std::string(text)); }
  Json& add(const std::string& name, const Json& object) { return raw(name, object.dump()); }
  /// A number exactly; what JSON has no word for (NaN, infinity) as null.
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  Json& add(const std::string& name, Number value) {
    const bool finite = std::isfinite(static_cast<double>(value));
    return raw(name, finite ? fmt::format("{}", value) : "null");
  }
  /// A list with one object in each line.
  Json& add(const std::string& name, const std::vector<Json>& objects) {
    std::string lines;
    for (const auto& object : objects) lines += (lines.empty() ? "\n" : ",\n") + object.dump();
    return raw(name, "[" + lines + "\n]");
  }

  /// The object as text.
  std::string dump() const { return "{" + fields_ + "}"; }

 private:
  Json& raw(const std::string& name, const std::string& value) {
    fields_ += (fields_.empty() ? "" : ", ") + quoted(name) + ": " + value;
    return *this;
  }

  static std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') result += '\\';
      if (static_cast<unsigned char>(c) < 0x20) {
        result += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
      } else {
        result += c;
      }
    }
    return result + "\"";
  }

  std::string fields_;
};

}  // namespace measure
