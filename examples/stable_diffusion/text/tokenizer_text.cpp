// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_text.h"

#include <c10/util/Exception.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string_view>

namespace sd {
namespace {

struct Range {
  char32_t first, last;
};

template <size_t N>
bool contains(const Range (&ranges)[N], char32_t c) {
  const auto* range =
      std::lower_bound(std::begin(ranges), std::end(ranges), c,
                       [](const Range& r, char32_t value) { return r.last < value; });
  return range != std::end(ranges) && range->first <= c;
}

// transformers 5.23 with tokenizers 0.23 mixes three Unicode versions: its regular expressions know
// 16.0, its lower-casing 17.0 and its form C none of the marks added after 9.0. utf8proc 2.8 knows
// 15.0. The tables below are the differences, found by running both over every code point.

constexpr Range newer_letters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3},
    {0x10d4a, 0x10d65}, {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389},
    {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113b7},
    {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0}, {0x13460, 0x143fa},
    {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d},
};

constexpr Range newer_numbers[] = {
    {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x16130, 0x16139},
    {0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa},
};

// Marks and letters that form C must leave alone. The scripts added in 16.0 are listed as whole
// blocks, so that a newer utf8proc gives the same ids.
constexpr Range not_in_form_c[] = {
    {0x07fd, 0x07fd},   {0x0897, 0x089f},   {0x08ca, 0x08d3},   {0x09fe, 0x09fe},
    {0x0c3c, 0x0c3c},   {0x0d3b, 0x0d3c},   {0x0eba, 0x0eba},   {0x1715, 0x1715},
    {0x1abf, 0x1aff},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x105c0, 0x105ff},
    {0x10d24, 0x10d27}, {0x10d40, 0x10d8f}, {0x10eab, 0x10eac}, {0x10ef0, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b},
    {0x11380, 0x113ff}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930},
    {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16100, 0x1613f}, {0x16d40, 0x16d7f}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
    {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
    {0x1e5d0, 0x1e5ff},
};

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool is_letter(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return contains(newer_letters, c);
  }
}

bool is_number(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return contains(newer_numbers, c);
  }
}

char32_t to_lower(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  switch (c) {
    case 0x1c89:
    case 0xa7cc:
    case 0xa7ce:
    case 0xa7d2:
    case 0xa7d4:
    case 0xa7da:
      return c + 1;
    case 0xa7cb:
      return 0x264;
    case 0xa7dc:
      return 0x19b;
    default:
      break;
  }
  if (c >= 0x10d50 && c <= 0x10d65) return c + 32;
  if (c >= 0x16ea0 && c <= 0x16eb8) return c + 27;
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

// utf8proc's form C of a piece without any of the characters that form C must leave alone.
void append_nfc(std::u32string& out, const std::u32string& piece) {
  const std::string bytes = encode_utf8(piece);
  utf8proc_uint8_t* raw = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()),
                   static_cast<utf8proc_ssize_t>(bytes.size()), &raw,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  TORCH_CHECK(length >= 0, "sd::to_nfc: ", utf8proc_errmsg(length));
  out += decode_utf8(std::string(reinterpret_cast<const char*>(raw), static_cast<size_t>(length)));
}

size_t contraction_length(std::u32string_view rest) {
  static constexpr std::u32string_view forms[] = {U"'s", U"'t",  U"'re", U"'ve",
                                                  U"'m", U"'ll", U"'d"};
  for (const auto form : forms) {
    if (rest.substr(0, form.size()) == form) return form.size();
  }
  return 0;
}

// The marker names are words of the first expression; a second one then splits each in three.
bool append_marker(std::vector<std::u32string>& words, std::u32string_view rest, size_t& length) {
  static constexpr std::u32string_view names[] = {U"startoftext", U"endoftext"};
  for (const auto name : names) {
    const std::u32string marker = U"<|" + std::u32string(name) + U"|>";
    if (rest.substr(0, marker.size()) != marker) continue;
    words.insert(words.end(), {U"<|", std::u32string(name), U"|>"});
    length = marker.size();
    return true;
  }
  return false;
}

size_t run_length(std::u32string_view rest) {
  if (is_number(rest[0])) return 1;
  const bool letters = is_letter(rest[0]);
  size_t length = 1;
  while (length < rest.size() && is_letter(rest[length]) == letters &&
         (letters || (!is_space(rest[length]) && !is_number(rest[length])))) {
    ++length;
  }
  return length;
}

}  // namespace

std::u32string decode_utf8(const std::string& text) {
  std::u32string out;
  out.reserve(text.size());
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t c = 0;
    const auto used =
        utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    TORCH_CHECK_VALUE(used > 0, "sd::Tokenizer: the text: expected UTF-8, got the byte ",
                      static_cast<int>(bytes[at]), " at offset ", at,
                      "; hint: save the text or set the terminal to UTF-8");
    out.push_back(static_cast<char32_t>(c));
    at += static_cast<size_t>(used);
  }
  return out;
}

std::string encode_utf8(const std::u32string& text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    utf8proc_uint8_t bytes[4];
    const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
    out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
  }
  return out;
}

std::string replace_malformed_utf8(const std::string& bytes) {
  std::string out;
  const auto* data = reinterpret_cast<const utf8proc_uint8_t*>(bytes.data());
  for (size_t at = 0; at < bytes.size();) {
    utf8proc_int32_t c = 0;
    const auto used =
        utf8proc_iterate(data + at, static_cast<utf8proc_ssize_t>(bytes.size() - at), &c);
    if (used > 0) {
      out.append(bytes, at, static_cast<size_t>(used));
    } else {
      out += "\xef\xbf\xbd";
    }
    at += used > 0 ? static_cast<size_t>(used) : 1;
  }
  return out;
}

std::u32string to_nfc(const std::u32string& text) {
  // Below U+0300 nothing composes.
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; })) return text;
  std::u32string out;
  std::u32string piece;
  for (const char32_t c : text) {
    if (!contains(not_in_form_c, c)) {
      piece.push_back(c);
      continue;
    }
    append_nfc(out, piece);
    piece.clear();
    out.push_back(c);
  }
  append_nfc(out, piece);
  return out;
}

std::u32string normalize_text(const std::u32string& text) {
  std::u32string out;
  bool in_space = false;
  for (const char32_t c : to_nfc(text)) {
    if (!is_space(c)) {
      out.push_back(to_lower(c));
      if (c == 0x130) out.push_back(0x307);
    } else if (!in_space) {
      out.push_back(U' ');
    }
    in_space = is_space(c);
  }
  return out;
}

std::vector<std::u32string> split_words(const std::u32string& text) {
  std::vector<std::u32string> words;
  for (size_t at = 0; at < text.size();) {
    const std::u32string_view rest = std::u32string_view(text).substr(at);
    size_t length = 1;
    if (!is_space(rest[0]) && !append_marker(words, rest, length)) {
      length = contraction_length(rest);
      if (length == 0) length = run_length(rest);
      words.emplace_back(rest.substr(0, length));
    }
    at += length;
  }
  return words;
}

}  // namespace sd
