// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace cli {

/// What kind of value a flag takes, as configuration files write it.
enum class ValueKind { text, integer, real, list, toggle };

/// One flag's value, or a list's values.
struct Setting {
  std::string name;  ///< without dashes
  ValueKind kind = ValueKind::text;
  std::vector<std::string> values;
  bool free_on_resume = false;  ///< as its flag says it, see cli::Flag

  /// The values with commas between them.
  std::string text() const;
};

/// Reads a TOML file of flags: `max_train_steps = 500`. Tables only group; their names do not
/// count.
/// Errors: std::invalid_argument with the file and the line
std::vector<Setting> read_config(const std::string& path);

/// The settings as TOML, one line each, in their order. A text that is no UTF-8, which the name of a
/// file may be, becomes `{ bytes = "caf\u00E9" }` with one character for each byte, since TOML holds
/// nothing but UTF-8; `read_config` gives the bytes back.
std::string config_text(const std::vector<Setting>& settings);

/// Writes them as a file for `--config`, with the command that repeats the run on top.
void write_config(const std::string& path, const std::string& program,
                  const std::vector<Setting>& settings);

}  // namespace cli
