// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace cli {

/// A file size for people, in powers of 1000 as file managers show it: "812 bytes", "320.4 KB",
/// "1.6 GB".
std::string format_bytes(int64_t bytes);

/// Bytes of "6GB", "800 MB", "1.5GiB", "6G" or "1000"; a unit with an i is a power of 1024. Nothing
/// for other texts, amounts below one byte and those beyond 2^62.
std::optional<int64_t> parse_bytes(const std::string& text);

/// A length of time for people: "0.42 s", "38 s", "1 min 05 s", "2 h 03 min".
/// Negative or not finite gives "?".
std::string format_duration(double seconds);

/// A length of time for a narrow place: "01:05", "2:03:07"; "?" as above.
std::string format_clock(double seconds);

/// The shortest text that reads back as the same number, for files.
std::string format_exact(double value);

/// A word as a POSIX shell reads it back, in single quotes if it needs any: 'a $1 cat'.
std::string format_word(const std::string& word);

/// A count with thousands apart: "19,200".
std::string format_count(int64_t count);

}  // namespace cli
