// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/cli/choices.h"
#include "support/cli/config.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"

namespace cli {

class App;

/// A flag that an App has just got, for what else there is to say about it:
/// `app.add_option(...)->check(cli::at_least(1))->free_on_resume()`.
class Flag {
 public:
  Flag(App& app, CLI::Option* option) : app_(&app), option_(option) {}
  Flag* operator->() { return this; }

  /// A value must pass this check.
  Flag check(const CLI::Validator& validator);
  /// The program does not run without the flag.
  Flag required();
  /// The flag is given beside another one only.
  Flag needs(const Flag& other);
  /// On the command line the flag takes the place of another one that a configuration file has.
  Flag overrules(const std::string& other);
  /// A training run that goes on from a checkpoint may have another value than before: the flag
  /// says where the run goes and what it shows, but not what it learns on the way.
  Flag free_on_resume();

 private:
  App* app_;
  CLI::Option* option_;
};

/// The flags of one program: CLI11's App with the conventions that all programs share.
///
/// Every flag answers to `--a_b` and to `--a-b`; a flag given twice takes the last value, as in
/// Python's argparse, except a list, which collects one value per use. `--flag=` is the empty text
/// for a text, and for a number that may be left out it is as if it had been, also in a
/// configuration file. `--help` shows groups, defaults and one example; `--version` shows the
/// library's version.
///
/// @code
/// cli::App app("text_to_image", "Draws pictures.", "text_to_image --prompt 'a cat' --output
/// cat.png"); app.group("Picture"); app.add_option("--seed", seed, "Seed of the
/// noise")->check(cli::at_least(0)); return cli::run(argc, argv, app, [&] { draw(seed); });
/// @endcode
class App : public CLI::App {
 public:
  App(const std::string& name, const std::string& purpose, const std::string& example);

  /// The flags added from here on stand under this heading in `--help`.
  void group(const std::string& heading) { option_defaults()->group(heading); }

  /// A flag with a value, by its name, or by that and another program's, as
  /// "--snr_gamma,--min_snr_gamma"; what the variable holds now is the default that `--help` shows.
  /// Value: std::string, an integer or a floating-point type, std::optional of these, or
  /// std::vector of std::string (one value per use of the flag). A value that does not parse is a
  /// usage error.
  template <typename Value>
  Flag add_option(const std::string& flag, Value& value, const std::string& description) {
    CLI::Option* option = CLI::App::add_option(both_spellings(flag), value, description);
    option->capture_default_str();
    remember(option, value);
    using Plain = typename PlainType<Value>::type;
    if constexpr (std::is_floating_point_v<Plain>) {
      option->check(parses_as(Number::kReal));
    } else if constexpr (std::is_integral_v<Plain>) {
      option->check(parses_as(std::is_unsigned_v<Plain> ? Number::kNatural : Number::kInteger));
    } else {
      option->check(is_no_flag());
    }
    if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      option->allow_extra_args(false);
    } else {
      option->take_last();
    }
    if constexpr (!std::is_same_v<Plain, Value> && std::is_arithmetic_v<Plain>) {
      unset_[option] = [&value] { value.reset(); };
    }
    return {*this, option};
  }

  /// A flag with two whole numbers, as `--size 512 768`; empty without it.
  Flag add_pair(const std::string& flag, std::vector<int64_t>& pair,
                const std::string& description);

  /// A flag with an amount of memory, as "6GB", "800 MB" or "1.5GiB"; without a unit it is bytes.
  Flag add_bytes(const std::string& flag, int64_t& bytes, const std::string& description);

  /// A flag whose value is one of a few words, which `--help` lists, and which stand for values of
  /// any type that can be compared: an enumeration, say, or an optional one. The words are in small
  /// letters; capital ones are read as such.
  template <typename Value>
  Flag add_choice(const std::string& flag, Value& value, const Choices<Value>& choices,
                  const std::string& description) {
    const auto read = [&value, choices](const CLI::results_t& words) {
      for (const auto& [word, meaning] : choices) {
        if (word != CLI::detail::to_lower(words.back())) continue;
        value = meaning;
        return true;
      }
      return false;
    };
    CLI::Option* option = CLI::App::add_option(
        both_spellings(flag), CLI::callback_t(read), description,
        /*defaulted=*/true, [&value, choices] { return word_of(choices, value); });
    current_.emplace_back(option, [&value, choices] {
      const std::string word = word_of(choices, value);
      return word.empty() ? Setting{} : setting_of(word);
    });
    option->take_last()->check(is_no_flag());
    return Flag(*this, option).check(one_of_words(words_of(choices)));
  }

  /// A seed: a whole number from 0 to 2^64 - 1, or -1 for a new one. `anew` is then set, for the
  /// program to draw one and say which.
  template <typename Seed>  // uint64_t or std::optional<uint64_t>
  Flag add_seed(const std::string& flag, Seed& seed, bool& anew, const std::string& description) {
    return add_seed(
        flag,
        [&seed, &anew](uint64_t value, bool is_new) {
          anew = is_new;
          seed = value;
          if constexpr (!std::is_same_v<Seed, uint64_t>) {
            if (is_new) seed.reset();
          }
        },
        [&seed, &anew] {
          return anew ? Setting{"", ValueKind::integer, {"-1"}} : setting_of(seed);
        },
        description);
  }

  /// A switch: false unless given.
  Flag add_flag(const std::string& flag, bool& value, const std::string& description) {
    CLI::Option* option = CLI::App::add_flag(both_spellings(flag), value, description);
    remember(option, value);
    option->take_last();
    return {*this, option};
  }

  /// A flag that others have and this program has not; who uses it is told why.
  void absent(const std::string& flag, const std::string& why) { absent_[flag] = why; }

  /// Adds `--config FILE`: flags from a TOML file, over which the command line wins.
  void add_config_flag();

  /// What every flag of the program holds now, those without a value left out: the text of it
  /// (`config_text`) is a configuration file that repeats the run.
  std::vector<Setting> settings() const;

  /// The text of `--help`.
  std::string help_text() const;

  /// Reads the arguments after the program's name into the variables.
  /// Errors: CLI::CallForHelp, CLI::CallForVersion; std::invalid_argument with one line for bad
  /// usage
  void read(std::vector<std::string> arguments);

 private:
  friend class Flag;

  enum class Number { kInteger, kNatural, kReal };

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
      return {"", ValueKind::integer, {fmt::to_string(value)}};
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
  std::string overruled_by(const std::vector<const CLI::Option*>& given,
                           const CLI::Option* option) const;
  std::vector<const CLI::Option*> take_unset(std::vector<std::string>& arguments) const;
  Flag add_seed(const std::string& flag, const std::function<void(uint64_t, bool)>& set,
                const std::function<Setting()>& current, const std::string& description);
  static std::string both_spellings(const std::string& flag);
  static CLI::Validator parses_as(Number kind);
  static CLI::Validator one_of_words(const std::vector<std::string>& words);
  CLI::Validator is_no_flag() const;
  std::string usage_error(const CLI::ParseError& error) const;
  std::string unknown_argument(const std::string& argument) const;

  std::string example_;
  std::map<std::string, std::string> absent_;
  std::string config_path_;
  const CLI::Option* config_flag_ = nullptr;  // a program's own --config is none of ours
  std::vector<std::pair<const CLI::Option*, std::function<Setting()>>> current_;
  std::set<const CLI::Option*> free_on_resume_;
  std::map<const CLI::Option*, std::function<void()>> unset_;  // of numbers that may be left out
  std::vector<std::pair<const CLI::Option*, std::string>> overruled_;  // by a flag: another's name
};

/// Checks for `add_option(...)->check(...)`; the message reads "expected <what>, got <value>".
CLI::Validator at_least(double minimum);
CLI::Validator above(double minimum);
CLI::Validator between(double minimum, double maximum);
/// From the first on, and less than the second.
CLI::Validator below(double minimum, double end);
/// One of a few words, which `--help` lists.
CLI::Validator one_of(const std::vector<std::string>& words);

/// The candidate closest to what was typed, or an empty text if none resembles it. `-` and `_`
/// count as equal; a candidate that contains the typed text as a whole is close.
std::string closest(const std::string& typed, const std::vector<std::string>& candidates);

}  // namespace cli
