// SPDX-License-Identifier: Apache-2.0
#include "support/cli/app.h"

#include <lightlora/config.h>

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "support/cli/fmt.h"
#include "support/cli/message.h"

namespace cli {

namespace {

std::string with(char separator, std::string name) {
  for (char& c : name) {
    if (c == '-' || c == '_') c = separator;
  }
  return name;
}

std::string without_dashes(const std::string& flag) {
  const auto start = flag.find_first_not_of('-');
  return start == std::string::npos ? "" : flag.substr(start);
}

int64_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int64_t>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int64_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

bool is_integer(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  std::strtoll(text.c_str(), &end, 10);
  return !text.empty() && !std::isspace(static_cast<unsigned char>(text[0])) && *end == '\0' &&
         errno == 0;
}

bool is_natural(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  std::strtoull(text.c_str(), &end, 10);
  return !text.empty() && std::isdigit(static_cast<unsigned char>(text[0])) && *end == '\0' &&
         errno == 0;
}

bool is_finite_number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return !text.empty() && !std::isspace(static_cast<unsigned char>(text[0])) && *end == '\0' &&
         std::isfinite(value);
}

/// Lets only those numbers pass for which `accepts` holds; text that is no number is left to the
/// check of the flag's type, which runs first.
template <typename Accepts>
CLI::Validator numeric(const std::string& expected, Accepts accepts) {
  return CLI::Validator(
      [expected, accepts](std::string& value) {
        return accepts(std::strtod(value.c_str(), nullptr))
                   ? std::string()
                   : fmt::format("expected {}, got '{}'", expected, value);
      },
      /*validator_desc=*/"");
}

}  // namespace

App::App(const std::string& name, const std::string& purpose, const std::string& example)
    : CLI::App(purpose, name), example_(example) {
  set_help_flag("--help,-h", "Show this text");
  set_version_flag("--version", name + " (lightlora) " LIGHTLORA_VERSION, "Show the version");
}

Flag App::add_pair(const std::string& flag, std::vector<int64_t>& pair,
                   const std::string& description) {
  CLI::Option* option = CLI::App::add_option(both_spellings(flag), pair, description);
  current_.emplace_back(option, [&pair] {
    Setting setting{"", ValueKind::list, {}};
    for (const int64_t number : pair) setting.values.push_back(fmt::to_string(number));
    return pair.empty() ? Setting{} : setting;
  });
  option->expected(2)->take_last()->type_name("INT INT")->check(parses_as(Number::kInteger));
  return {*this, option};
}

Flag App::add_bytes(const std::string& flag, int64_t& bytes, const std::string& description) {
  const auto read = [&bytes](const CLI::results_t& words) {
    const auto value = parse_bytes(words.back());
    if (value) bytes = *value;
    return value.has_value();
  };
  CLI::Option* option =
      CLI::App::add_option(both_spellings(flag), CLI::callback_t(read), description,
                           /*defaulted=*/true, [&bytes] { return fmt::to_string(bytes); });
  current_.emplace_back(option, [&bytes] {
    return bytes == 0 ? Setting{} : Setting{"", ValueKind::text, {fmt::to_string(bytes)}};
  });
  option->take_last()->type_name("SIZE")->check(CLI::Validator(
      [](std::string& word) -> std::string {
        return parse_bytes(word) ? "" : "expected a size such as 6GB or 800MB, got '" + word + "'";
      },
      /*validator_desc=*/""));
  return {*this, option};
}

std::string App::both_spellings(const std::string& flag) {
  // Another program's name for the same flag stands behind a comma.
  if (const auto comma = flag.find(','); comma != std::string::npos) {
    return both_spellings(flag.substr(0, comma)) + "," + both_spellings(flag.substr(comma + 1));
  }
  const std::string name = without_dashes(flag);
  const std::string underscored = "--" + with('_', name);
  const std::string dashed = "--" + with('-', name);
  return underscored == dashed ? underscored : underscored + "," + dashed;
}

CLI::Validator App::parses_as(Number kind) {
  return CLI::Validator(
      [kind](std::string& value) -> std::string {
        if (kind == Number::kInteger) {
          return is_integer(value) ? "" : "expected an integer, got '" + value + "'";
        }
        if (kind == Number::kNatural) {
          return is_natural(value) ? "" : "expected a whole number from 0, got '" + value + "'";
        }
        return is_finite_number(value) ? "" : "expected a number, got '" + value + "'";
      },
      /*validator_desc=*/"");
}

Flag App::add_seed(const std::string& flag, const std::function<void(uint64_t, bool)>& set,
                   const std::function<Setting()>& current, const std::string& description) {
  const auto read = [set](const CLI::results_t& words) {
    const bool anew = words.back() == "-1";
    set(anew ? 0 : std::strtoull(words.back().c_str(), nullptr, 10), anew);
    return true;
  };
  CLI::Option* option =
      CLI::App::add_option(both_spellings(flag), CLI::callback_t(read), description,
                           /*defaulted=*/true, [current] { return current().text(); });
  current_.emplace_back(option, current);
  option->take_last();
  return Flag(*this, option)
      .check(CLI::Validator(
          [](std::string& value) -> std::string {
            if (value == "-1" || is_natural(value)) return "";
            return fmt::format(
                "expected a whole number from 0 to 2^64 - 1, or -1 for a new one, got "
                "'{}'",
                value);
          },
          /*validator_desc=*/""));
}

CLI::Validator App::is_no_flag() const {
  return CLI::Validator(
      [this](std::string& value) -> std::string {
        const bool flag = value.rfind("--", 0) == 0 && get_option_no_throw(value) != nullptr;
        return flag ? fmt::format("expected a value, got the flag '{}'", value) : "";
      },
      /*validator_desc=*/"");
}

void App::add_config_flag() {
  add_option("--config", config_path_,
             "TOML file with flags, as max_train_steps = 500; flags on the command line win");
  config_flag_ = get_option("--config");
}

std::vector<Setting> App::settings() const {
  std::vector<Setting> result;
  for (const auto& [option, current] : current_) {
    Setting setting = current();
    setting.name = option->get_lnames().front();
    setting.free_on_resume = free_on_resume_.count(option) > 0;
    const bool given = setting.kind == ValueKind::list || !setting.values.empty();
    if (given && option != config_flag_) result.push_back(std::move(setting));
  }
  return result;
}

std::vector<std::string> App::with_config(const std::vector<std::string>& arguments) const {
  std::string path;
  std::vector<const CLI::Option*> given;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto equals = arguments[i].find('=');
    const CLI::Option* option = arguments[i].rfind("--", 0) == 0
                                    ? get_option_no_throw(arguments[i].substr(0, equals))
                                    : nullptr;
    given.push_back(option);
    if (option == nullptr || option != config_flag_) continue;
    if (equals != std::string::npos) path = arguments[i].substr(equals + 1);
    if (equals == std::string::npos && i + 1 < arguments.size()) path = arguments[i + 1];
  }
  if (path.empty()) return arguments;
  std::vector<std::string> all;
  for (const auto& setting : read_config(path)) {
    const CLI::Option* option = get_option_no_throw("--" + setting.name);
    if (option == nullptr) {
      throw std::invalid_argument(
          fmt::format("'{}': {}", path, unknown_argument("--" + setting.name)));
    }
    if (std::find(given.begin(), given.end(), option) != given.end()) continue;
    if (const auto by = overruled_by(given, option); !by.empty()) {
      std::cout << fmt::format("{}: notice: --{} is given: {} = {} of '{}' does not count\n",
                               get_name(), by, setting.name, printable(setting.text()),
                               printable(path));
      if (unset_.count(option) > 0) all.push_back("--" + setting.name + "=");  // nor a default
      continue;
    }
    for (const auto& value : setting.values) all.push_back("--" + setting.name + "=" + value);
  }
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

// The name of the flag on the command line that takes the place of another one.
std::string App::overruled_by(const std::vector<const CLI::Option*>& given,
                              const CLI::Option* option) const {
  for (const auto& [flag, other] : overruled_) {
    const bool is_given = std::find(given.begin(), given.end(), flag) != given.end();
    if (is_given && get_option_no_throw(other) == option) return flag->get_lnames().front();
  }
  return "";
}

// Takes out each `--flag=` of a number that may be left out. The last use of a flag counts: those
// for which that was one are left out.
std::vector<const CLI::Option*> App::take_unset(std::vector<std::string>& arguments) const {
  std::map<const CLI::Option*, bool> unset;
  std::vector<std::string> others;
  for (const auto& argument : arguments) {
    const auto equals = argument.find('=');
    const auto* option =
        argument.rfind("--", 0) == 0 ? get_option_no_throw(argument.substr(0, equals)) : nullptr;
    const bool known = option != nullptr && unset_.count(option) > 0;
    if (known) unset[option] = equals + 1 == argument.size();
    if (!known || !unset[option]) others.push_back(argument);
  }
  arguments = std::move(others);
  std::vector<const CLI::Option*> result;
  for (const auto& [option, is_unset] : unset) {
    if (is_unset) result.push_back(option);
  }
  return result;
}

void App::read(std::vector<std::string> arguments) {
  if (config_flag_ != nullptr) arguments = with_config(arguments);
  const auto unset = take_unset(arguments);
  std::vector<std::string> reversed;  // the order that CLI11 wants
  for (auto& argument : arguments) {
    reversed.push_back(argument);
    if (argument.size() < 4 || argument.rfind("--", 0) != 0 || argument.back() != '=') continue;
    argument.pop_back();
    const CLI::Option* option = get_option_no_throw(argument);
    if (option == nullptr || option->get_type_size() == 0) continue;
    // CLI11 takes `--flag=` for a flag without a value; here it means the empty text.
    reversed.back() = argument;
    reversed.push_back("");
  }
  std::reverse(reversed.begin(), reversed.end());
  try {
    parse(std::move(reversed));
  } catch (const CLI::Success&) {
    throw;
  } catch (const CLI::ParseError& error) {
    throw std::invalid_argument(usage_error(error));
  }
  for (const auto* option : unset) unset_.at(option)();
}

std::string App::usage_error(const CLI::ParseError& error) const {
  // A misspelt required flag is reported by CLI11 as missing; the misspelling says more.
  const auto unknown = remaining();
  for (const auto& argument : unknown) {
    if (argument.size() > 1 && argument[0] == '-') return unknown_argument(argument);
  }

  const std::string message = error.what();
  const auto colon = message.find(':');
  const std::string flag = message.substr(0, colon);
  if (error.get_name() == "RequiredError") {
    return fmt::format("missing required flag '{}'; hint: see --help",
                       message.substr(0, message.find(' ')));
  }
  if (error.get_name() == "ArgumentMismatch") {
    return fmt::format("'{}': expected a value, got none", flag);
  }
  if (error.get_name() == "ConversionError") {  // "Could not convert: --flag = value"
    std::istringstream words(message.substr(colon + 1));
    std::string name, equals, value;
    words >> name >> equals >> value;
    return fmt::format("'{}': expected no value or true or false, got '{}'", name, value);
  }
  if (error.get_name() != "ValidationError") {
    return unknown.empty() ? message : unknown_argument(unknown.front());
  }
  return "'" + flag + "'" + message.substr(colon);
}

std::string App::unknown_argument(const std::string& argument) const {
  if (argument[0] != '-') {
    return fmt::format(
        "unexpected argument '{}'; hint: put quotes around a value that contains spaces", argument);
  }
  const std::string flag = argument.substr(0, argument.find('='));
  const auto known = absent_.find("--" + with('_', without_dashes(flag)));
  if (known != absent_.end()) return fmt::format("'{}' is not offered: {}", flag, known->second);
  std::vector<std::string> names;
  for (const CLI::Option* option : get_options()) {
    if (!option->get_lnames().empty()) names.push_back(option->get_lnames().front());
  }
  const std::string near = closest(without_dashes(flag), names);
  return fmt::format("unknown flag '{}'; hint: {}", flag,
                     near.empty() ? "see --help" : fmt::format("did you mean '--{}'?", near));
}

CLI::Validator at_least(double minimum) {
  return numeric(fmt::format("at least {}", minimum),
                 [=](double value) { return value >= minimum; });
}

CLI::Validator above(double minimum) {
  return numeric(fmt::format("more than {}", minimum),
                 [=](double value) { return value > minimum; });
}

CLI::Validator between(double minimum, double maximum) {
  return numeric(fmt::format("a number from {} to {}", minimum, maximum),
                 [=](double value) { return value >= minimum && value <= maximum; });
}

CLI::Validator below(double minimum, double end) {
  return numeric(fmt::format("at least {} and less than {}", minimum, end),
                 [=](double value) { return value >= minimum && value < end; });
}

CLI::Validator one_of(const std::vector<std::string>& words) {
  return CLI::Validator(
      [words](std::string& value) -> std::string {
        if (std::find(words.begin(), words.end(), value) != words.end()) return "";
        const std::string near = closest(value, words);
        return fmt::format("expected one of {}, got '{}'{}", fmt::join(words, ", "), value,
                           near.empty() ? "" : fmt::format("; hint: did you mean '{}'?", near));
      },
      fmt::format("{}", fmt::join(words, "|")));
}

CLI::Validator App::one_of_words(const std::vector<std::string>& words) {
  const auto exact = one_of(words);
  const auto loose = [exact](std::string& word) {
    return exact(word = CLI::detail::to_lower(word));  // a copy; diffusers' scripts say AdamW
  };
  return CLI::Validator(loose, exact.get_description());
}

std::string closest(const std::string& typed, const std::vector<std::string>& candidates) {
  const std::string wanted = with('_', typed);
  std::string best;
  // A third of the letters may differ; two in a short word.
  int64_t best_distance = std::max<int64_t>(2, static_cast<int64_t>(wanted.size()) / 3) + 1;
  for (const auto& candidate : candidates) {
    const int64_t distance = edit_distance(wanted, with('_', candidate));
    if (distance < best_distance && distance < static_cast<int64_t>(candidate.size())) {
      best_distance = distance;
      best = candidate;
    }
  }
  if (!best.empty() || wanted.size() < 3) return best;
  for (const auto& candidate : candidates) {
    if (with('_', candidate).find(wanted) == std::string::npos) continue;
    if (best.empty() || candidate.size() < best.size()) best = candidate;
  }
  return best;
}

}  // namespace cli
