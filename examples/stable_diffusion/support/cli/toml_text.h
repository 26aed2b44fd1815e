// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

// The one place that includes toml++. Where it is used as headers alone, its parser asserts, before it
// refuses them, what texts such as "[{" do not hold: a build for debugging would end by a signal.
#ifndef TOML_ASSERT
#define TOML_ASSERT(expression) static_assert(true)
#endif
#include <toml++/toml.h>

namespace cli {

/// The text of a TOML file, which may be a stranger's, with what the parser has no bounds for
/// checked: 1 MB, and 1000 dots in a line, each of which makes a table in a table.
/// Errors: std::invalid_argument naming the file; c10::Error if it is no regular file or too large
std::string read_toml(const std::string& path);

/// Such a file as a table, for what is no configuration of flags.
/// Errors: c10::Error naming the file, and the line for what is no TOML
toml::table parse_toml(const std::string& path);

}  // namespace cli
