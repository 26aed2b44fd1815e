// SPDX-License-Identifier: Apache-2.0
#include "support/cli/format.h"

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <string_view>

#include "support/cli/fmt.h"

namespace cli {

namespace {

bool is_known(double seconds) { return std::isfinite(seconds) && seconds >= 0 && seconds < 1e15; }

}  // namespace

std::string format_bytes(int64_t bytes) {
  if (bytes < 1000) return fmt::format("{} byte{}", bytes, bytes == 1 ? "" : "s");
  auto value = static_cast<double>(bytes) / 1000;
  const char* const units[] = {"KB", "MB", "GB", "TB", "PB", "EB"};
  std::size_t unit = 0;
  // 999.95 would be shown as "1000.0".
  for (; value >= 999.95 && unit + 1 < std::size(units); ++unit) value /= 1000;
  return fmt::format("{:.1f} {}", value, units[unit]);
}

std::optional<int64_t> parse_bytes(const std::string& text) {
  if (text.empty() || !std::isdigit(static_cast<unsigned char>(text.front()))) return std::nullopt;
  char* end = nullptr;
  double bytes = std::strtod(text.c_str(), &end);
  while (*end == ' ') ++end;
  std::string unit;
  for (; *end != '\0'; ++end)
    unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*end)));
  if (!unit.empty() && unit.back() == 'b') unit.pop_back();
  double factor = 1000;
  if (unit.size() == 2 && unit.back() == 'i') {
    factor = 1024;
    unit.pop_back();
  }
  constexpr std::string_view units = "kmgt";
  const auto power = unit.size() == 1 ? units.find(unit.front()) : std::string_view::npos;
  if (!unit.empty() && power == std::string_view::npos) return std::nullopt;
  if (!unit.empty()) bytes *= std::pow(factor, static_cast<double>(power + 1));
  if (!(bytes >= 1 && bytes <= std::ldexp(1.0, 62))) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

std::string format_duration(double seconds) {
  if (!is_known(seconds)) return "?";
  if (seconds < 9.995) return fmt::format("{:.2f} s", seconds);
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  const long long minutes = (whole + 30) / 60;
  return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
}

std::string format_clock(double seconds) {
  if (!is_known(seconds)) return "?";
  const auto whole = static_cast<long long>(seconds);
  if (whole < 3600) return fmt::format("{:02}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string format_exact(double value) { return fmt::format("{}", value); }

std::string format_word(const std::string& word) {
  constexpr const char* kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string result = "'";
  for (const char c : word) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

std::string format_count(int64_t count) {
  std::string digits = fmt::to_string(count);
  const std::size_t first = digits[0] == '-' ? 1 : 0;
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > static_cast<int64_t>(first);
       at -= 3) {
    digits.insert(static_cast<std::size_t>(at), ",");
  }
  return digits;
}

}  // namespace cli
