// SPDX-License-Identifier: Apache-2.0
#include "support/cli/message.h"

#include <algorithm>
#include <cstdint>

#include "support/cli/fmt.h"

namespace cli {

namespace {

constexpr std::size_t kLongestValue = 500, kLongestMessage = 1500;

// Length of the UTF-8 character that a text begins with, and its code; 0 if it begins with none.
std::pair<std::size_t, uint32_t> character_at(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, lead};
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return {0, 0};
  uint32_t code = lead & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {0, 0};
    code = code << 6 | (byte(i) & 0x3FU);
  }
  const uint32_t least = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (code < least || code > 0x10FFFF || surrogate) return {0, 0};
  return {length, code};
}

bool is_obeyed(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x2028 && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069) || code == 0x200E || code == 0x200F || code == 0xFEFF;
}

std::string escaped(uint32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  return code < 0x80 ? fmt::format("\\x{:02x}", code) : fmt::format("\\u{:04x}", code);
}

// The start and the end of a text that is too long, cut between characters.
std::string shortened(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  const auto inside = [&](std::size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
  };
  std::size_t head = most * 2 / 3, tail = text.size() - most / 3;
  while (head > 0 && inside(head)) --head;
  while (tail < text.size() && inside(tail)) ++tail;
  return text.substr(0, head) + " ... " + text.substr(tail);
}

// Shortens what stands between quotes.
std::string with_short_values(const std::string& line) {
  std::string result;
  for (std::size_t at = 0; at < line.size();) {
    const std::size_t open = line.find('\'', at);
    const std::size_t close = open == line.npos ? line.npos : line.find('\'', open + 1);
    if (close == line.npos) return result + line.substr(at);
    result += line.substr(at, open + 1 - at);
    result += shortened(line.substr(open + 1, close - open - 1), kLongestValue);
    result += '\'';
    at = close + 1;
  }
  return result;
}

}  // namespace

std::size_t first_wrong_byte(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto length = character_at(text.substr(at)).first;
    if (length == 0) return at;
    at += length;
  }
  return text.npos;
}

bool is_utf8(std::string_view text) { return first_wrong_byte(text) == text.npos; }

std::string printable(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const auto [length, code] = character_at(text);
    if (length == 0) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[0]));
    } else if (is_obeyed(code)) {
      result += escaped(code);
    } else {
      result += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return result;
}

std::string message_line(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == text.npos) return "unknown error";
  text.remove_prefix(begin);
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\'') quoted = !quoted;
    // LibTorch's own messages go on with what helps its developers.
    if ((text[i] == '\n' || text[i] == '\r') && !quoted) text = text.substr(0, i);
  }
  return shortened(with_short_values(printable(text)), kLongestMessage);
}

}  // namespace cli
