// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace cli {

/// The words of a flag and the values that they stand for, in the order of `--help`. A value with
/// two words is written with the first.
template <typename Value>
using Choices = std::vector<std::pair<std::string, Value>>;

/// The words alone.
template <typename Value>
std::vector<std::string> words_of(const Choices<Value>& choices) {
  std::vector<std::string> words;
  for (const auto& choice : choices) words.push_back(choice.first);
  return words;
}

/// The word of a value, or an empty text if it has none.
template <typename Value>
std::string word_of(const Choices<Value>& choices, const Value& value) {
  for (const auto& [word, meaning] : choices) {
    if (meaning == value) return word;
  }
  return "";
}

}  // namespace cli
