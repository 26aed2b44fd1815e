// SPDX-License-Identifier: Apache-2.0
// The flags of a benchmark that needs LibTorch alone, with the conventions of the other programs.
#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <lightlora/config.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// Every flag answers to `--a_b` and `--a-b` and takes its value as the next argument or after `=`.
/// A flag given twice takes the last value, except a list, which collects one value per use.
class Options {
 public:
  Options(std::string program, std::string purpose, std::string example)
      : program_(std::move(program)), purpose_(std::move(purpose)), example_(std::move(example)) {}

  /// The flags added from here on stand under this heading in `--help`.
  void group(const std::string& heading) { heading_ = heading; }

  /// A text; one of `words` unless there are none.
  void add(const std::string& flag, std::string& value, const std::string& description,
           const std::vector<std::string>& words = {}) {
    const std::string choice = words.empty() ? "TEXT" : fmt::format("{}", fmt::join(words, "|"));
    insert(flag, choice, value, description, [flag, &value, words, choice](auto& text) {
      bool known = words.empty();
      for (const auto& word : words) known = known || word == text;
      require(known, flag, "one of " + choice, text);
      value = text;
    });
  }
  /// Texts, one per use of the flag.
  void add(const std::string& flag, std::vector<std::string>& values,
           const std::string& description) {
    insert(flag, "TEXT ...", "", description, [&values](auto& text) { values.push_back(text); });
  }
  /// A whole number of at least 1.
  void add(const std::string& flag, int64_t& value, const std::string& description) {
    insert(flag, "INT", fmt::format("{}", value), description, [flag, &value](auto& text) {
      char* end = nullptr;
      errno = 0;
      value = std::strtoll(text.c_str(), &end, 10);
      const bool read = !text.empty() && *end == '\0' && errno == 0;
      require(read && value >= 1, flag, "a whole number of at least 1", text);
    });
  }
  /// A number above 0.
  void add(const std::string& flag, double& value, const std::string& description) {
    insert(flag, "FLOAT", fmt::format("{}", value), description, [flag, &value](auto& text) {
      char* end = nullptr;
      value = std::strtod(text.c_str(), &end);
      require(!text.empty() && *end == '\0' && value > 0, flag, "a number above 0", text);
    });
  }
  /// A switch: false unless given.
  void add(const std::string& flag, bool& value, const std::string& description) {
    insert(flag, "", "", description, [&value](auto&) { value = true; });
  }

  /// The text of `--help`.
  std::string help() const {
    std::string text = fmt::format("{}\n\nUsage: {} [flags]\n", purpose_, program_), heading;
    for (const auto& flag : flags_) {
      if (flag.heading != heading) text += fmt::format("\n{}:\n", heading = flag.heading);
      const std::string start = flag.start.empty() ? "" : fmt::format(" [{}]", flag.start);
      text += fmt::format("  {:<28} {}{}\n", flag.name + " " + flag.kind, flag.description, start);
    }
    return text + fmt::format("\nExample:\n  {}\n", example_);
  }

  /// A program's main: exit status 0 for success, `--help` and `--version`, 2 for bad usage
  /// (c10::ValueError too), 1 for any other exception; on 1 and 2 one line on standard error.
  int run(int argc, const char* const* argv, const std::function<void()>& body) const {
    try {
      if (!read(std::vector<std::string>(argv + 1, argv + argc))) return 0;
      body();
      return std::fflush(stdout) == 0 ? 0 : 1;
    } catch (const c10::ValueError& error) {
      return fail(error.what_without_backtrace(), 2);
    } catch (const std::invalid_argument& error) {
      return fail(error.what(), 2);
    } catch (const c10::Error& error) {
      return fail(error.what_without_backtrace(), 1);
    } catch (const std::exception& error) {
      return fail(error.what(), 1);
    }
  }

 private:
  struct Flag {
    std::string heading, name, kind, start, description;
    std::function<void(const std::string&)> set;
  };

  void insert(const std::string& name, const std::string& kind, const std::string& start,
              const std::string& description, std::function<void(const std::string&)> set) {
    flags_.push_back({heading_, name, kind, start, description, std::move(set)});
  }

  static void require(bool good, const std::string& flag, const std::string& expected,
                      const std::string& got) {
    if (good) return;
    throw std::invalid_argument(fmt::format("'{}': expected {}, got '{}'", flag, expected, got));
  }

  const Flag& find(const std::string& given) const {
    std::string name = given;
    for (std::size_t i = 2; i < name.size(); ++i) {
      if (name[i] == '-') name[i] = '_';
    }
    for (const auto& flag : flags_) {
      if (flag.name == name) return flag;
    }
    throw std::invalid_argument(fmt::format("unknown argument '{}'; hint: see --help", given));
  }

  // Sets the variables; false if the arguments only asked for a text, which is then printed.
  bool read(const std::vector<std::string>& arguments) const {
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const auto& argument = arguments[i];
      if (argument == "--help" || argument == "-h") return say(help());
      if (argument == "--version") {
        return say(fmt::format("{} (lightlora) {}\n", program_, LIGHTLORA_VERSION));
      }
      const auto equals = argument.find('=');
      const Flag& flag = find(argument.substr(0, equals));
      if (equals != std::string::npos) {
        require(!flag.kind.empty(), flag.name, "no value", argument.substr(equals + 1));
        flag.set(argument.substr(equals + 1));
      } else if (flag.kind.empty()) {
        flag.set("");
      } else {
        const std::string next = i + 1 < arguments.size() ? arguments[i + 1] : "";
        require(!next.empty() && next.rfind("--", 0) != 0, flag.name, "a value", next);
        flag.set(arguments[++i]);
      }
    }
    return true;
  }

  static bool say(const std::string& text) {
    fmt::print("{}", text);
    return false;
  }

  int fail(const std::string& message, int status) const {
    std::fflush(stdout);
    fmt::print(stderr, "{}: error: {}\n", program_, message.substr(0, message.find('\n')));
    return status;
  }

  std::string program_, purpose_, example_, heading_;
  std::vector<Flag> flags_;
};

}  // namespace bench
