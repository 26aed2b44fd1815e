// SPDX-License-Identifier: Apache-2.0
// Text from elsewhere on a terminal: names of files, and what files say.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cli {

/// A text on one line, in UTF-8, without anything that a terminal would obey: line feeds, escape
/// codes, marks that turn the direction of writing and bytes that are no UTF-8 are written as `\n`,
/// `\x1b`, `\u202e` and `\xff`.
std::string printable(std::string_view text);

/// Where a text stops being whole characters of UTF-8; npos if it does not.
std::size_t first_wrong_byte(std::string_view text);

/// Whether a text is nothing but whole characters of UTF-8.
bool is_utf8(std::string_view text);

/// A message as programs show it: printable, cut off at a line feed that stands in no quotes, with
/// long values in quotes shortened in their middle, and of at most about 1500 bytes.
std::string message_line(std::string_view text);

}  // namespace cli
