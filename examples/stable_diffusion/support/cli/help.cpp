// SPDX-License-Identifier: Apache-2.0
// The text of --help: one column of flags, one of descriptions, in the groups that the program
// made.
#include <lightlora/config.h>

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <sstream>

#include "support/cli/app.h"
#include "support/cli/fmt.h"

namespace cli {

namespace {

constexpr std::size_t kColumns = 100;
constexpr std::size_t kDescriptionColumn = 36;

/// "--rank INT", or "--variant classic|light|fused" for a flag with choices.
std::string left_column(const CLI::Option& option) {
  std::string text = "  ";
  if (!option.get_snames().empty()) text += "-" + option.get_snames().front() + ", ";
  text += "--" + option.get_lnames().front();
  if (option.get_type_size() == 0) return text;
  const std::string type = option.get_type_name();
  return fmt::format("{} {}", text, type.substr(type.find(':') + 1));
}

std::string right_column(const CLI::Option& option) {
  std::string text = option.get_description();
  if (option.get_required()) text += " (required)";
  const std::string value = option.get_default_str();
  // An empty list prints as [] or {}.
  if (option.get_type_size() != 0 && !value.empty() && value != "[]" && value != "{}") {
    text += fmt::format(" (default {})", value);
  }
  return text;
}

/// Appends the words of `text`, broken at kColumns, every line from kDescriptionColumn on.
void append_wrapped(std::string& out, std::size_t column, const std::string& text) {
  std::istringstream words(text);
  std::string word;
  while (words >> word) {
    const bool starts_line = column < kDescriptionColumn;
    if (!starts_line && column + 1 + word.size() > kColumns) {
      out += '\n';
      column = 0;
    }
    const std::size_t spaces = column < kDescriptionColumn ? kDescriptionColumn - column : 1;
    out.append(spaces, ' ');
    out += word;
    column += spaces + word.size();
  }
  out += '\n';
}

void append_option(std::string& out, const CLI::Option& option) {
  const std::string left = left_column(option);
  out += left;
  std::size_t column = left.size();
  if (column + 2 > kDescriptionColumn) {
    out += '\n';
    column = 0;
  }
  append_wrapped(out, column, right_column(option));
}

}  // namespace

std::string App::help_text() const {
  std::string text = fmt::format("{0} (lightlora) {1}: {2}\n\nUsage: {0}", get_name(),
                                 LIGHTLORA_VERSION, get_description());
  const auto options = get_options();
  for (const CLI::Option* option : options) {
    if (option->get_required()) text += left_column(*option).substr(1);
  }
  text += " [flags]\n";
  std::vector<std::string> groups;  // the program's own first, CLI11's ("Options") last
  for (const CLI::Option* option : options) {
    const std::string& group = option->get_group();
    if (group != "Options" && std::find(groups.begin(), groups.end(), group) == groups.end()) {
      groups.push_back(group);
    }
  }
  groups.push_back("Options");
  for (const auto& group : groups) {
    text += fmt::format("\n{}:\n", group == "Options" ? "Other" : group);
    for (const CLI::Option* option : options) {
      if (option->get_group() == group) append_option(text, *option);
    }
  }
  return text +
         fmt::format(
             "\nEvery flag may also be written with dashes: --a_b is --a-b.\n\nExample:\n  {}\n",
             example_);
}

}  // namespace cli
