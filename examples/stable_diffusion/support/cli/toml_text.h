// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <toml++/toml.h>

#include <string>

namespace cli {

/// The text of a TOML file, which may be a stranger's, with what the parser has no bounds for
/// checked: 1 MB, and 1000 dots in a line, each of which makes a table in a table.
/// Errors: std::invalid_argument naming the file; c10::Error if it is no regular file or too large
std::string read_toml(const std::string& path);

/// Such a file as a table, for what is no configuration of flags.
/// Errors: c10::Error naming the file, and the line for what is no TOML
toml::table parse_toml(const std::string& path);

}  // namespace cli
