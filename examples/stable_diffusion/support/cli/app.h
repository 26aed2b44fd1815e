// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "support/cli/config.h"
#include "support/cli/format.h"

namespace cli {

/// The flags of one program: CLI11's App with the conventions that all programs share.
///
/// Every flag answers to `--a_b` and to `--a-b`; a flag given twice takes the last value, as in
/// Python's argparse, except a list, which collects one value per use. `--help` shows groups,
/// defaults and one example; `--version` shows the library's version.
///
///     cli::App app("text_to_image", "Draws pictures.", "text_to_image --prompt 'a cat' --output
///     cat.png"); app.group("Picture"); app.add_option("--seed", seed, "Seed of the
///     noise")->check(cli::at_least(0)); return cli::run(argc, argv, app, [&] { ... });
class App : public CLI::App {
 public:
  App(const std::string& name, const std::string& purpose, const std::string& example);

  /// The flags added from here on stand under this heading in `--help`.
  void group(const std::string& heading) { option_defaults()->group(heading); }

  /// A flag with a value; what the variable holds now is the default that `--help` shows.
  /// Value: std::string, an integer or a floating-point type, std::optional of these, or
  /// std::vector of std::string (one value per use of the flag). A value that does not parse is a
  /// usage error.
  template <typename Value>
  CLI::Option* add_option(const std::string& flag, Value& value, const std::string& description) {
    CLI::Option* option = CLI::App::add_option(both_spellings(flag), value, description);
    option->capture_default_str();
    remember(option, value);
    using Plain = typename PlainType<Value>::type;
    if constexpr (std::is_floating_point_v<Plain>) {
      option->check(parses_as(Number::kReal));
    } else if constexpr (std::is_integral_v<Plain>) {
      option->check(parses_as(Number::kInteger));
    } else {
      option->check(is_no_flag());
    }
    if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      return option->allow_extra_args(false);
    } else {
      return option->take_last();
    }
  }

  /// A switch: false unless given.
  CLI::Option* add_flag(const std::string& flag, bool& value, const std::string& description) {
    CLI::Option* option = CLI::App::add_flag(both_spellings(flag), value, description);
    remember(option, value);
    return option->take_last();
  }

  /// A flag that others have and this program has not; who uses it is told why.
  void absent(const std::string& flag, const std::string& why) { absent_[flag] = why; }

  /// Adds `--config FILE`: flags from a TOML file, over which the command line wins.
  void add_config_flag();

  /// What every flag of the program holds now, those without a value left out: the text of it
  /// (`config_text`) is a configuration file that repeats the run.
  std::vector<Setting> settings() const;

  /// Writes the settings as a file for `--config`, with the command that repeats the run on top.
  void write_config(const std::string& path) const;

  /// The text of `--help`.
  std::string help_text() const;

  /// Reads the arguments after the program's name into the variables.
  /// Errors: CLI::CallForHelp, CLI::CallForVersion; std::invalid_argument with one line for bad
  /// usage
  void read(std::vector<std::string> arguments);

 private:
  enum class Number { kInteger, kReal };

  template <typename Value>
  struct PlainType {
    using type = Value;
  };
  template <typename Value>
  struct PlainType<std::optional<Value>> {
    using type = Value;
  };

  // What a variable holds now, as a setting; no values for an empty optional.
  template <typename Value>
  static Setting setting_of(const Value& value) {
    if constexpr (std::is_same_v<Value, bool>) {
      return {"", ValueKind::toggle, {value ? "true" : "false"}};
    } else if constexpr (std::is_integral_v<Value>) {
      return {"", ValueKind::integer, {std::to_string(value)}};
    } else if constexpr (std::is_floating_point_v<Value>) {
      return {"", ValueKind::real, {format_exact(value)}};
    } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      return {"", ValueKind::list, value};
    } else if constexpr (std::is_same_v<Value, std::string>) {
      return {"", ValueKind::text, {value}};
    } else {
      return value ? setting_of(*value) : Setting{};
    }
  }

  template <typename Value>
  void remember(const CLI::Option* option, const Value& value) {
    current_.emplace_back(option, [&value] { return setting_of(value); });
  }

  std::vector<std::string> with_config(const std::vector<std::string>& arguments) const;
  static std::string both_spellings(const std::string& flag);
  static CLI::Validator parses_as(Number kind);
  CLI::Validator is_no_flag() const;
  std::string usage_error(const CLI::ParseError& error) const;
  std::string unknown_argument(const std::string& argument) const;

  std::string example_;
  std::map<std::string, std::string> absent_;
  std::string config_path_;
  const CLI::Option* config_flag_ = nullptr;  // a program's own --config is none of ours
  std::vector<std::pair<const CLI::Option*, std::function<Setting()>>> current_;
};

/// Checks for `add_option(...)->check(...)`; the message reads "expected <what>, got <value>".
CLI::Validator at_least(double minimum);
CLI::Validator above(double minimum);
CLI::Validator between(double minimum, double maximum);
/// One of a few words, which `--help` lists.
CLI::Validator one_of(const std::vector<std::string>& words);

/// The candidate closest to what was typed, or an empty text if none resembles it. `-` and `_`
/// count as equal; a candidate that contains the typed text as a whole is close.
std::string closest(const std::string& typed, const std::vector<std::string>& candidates);

}  // namespace cli
