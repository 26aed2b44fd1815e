// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sd {

/// Reads the fields of one diffusers `config.json`. A field that is left out has its default;
/// fields that diffusers does not know are ignored, as it ignores them.
/// Errors: c10::ValueError `'<file>': expected <field> to be <what>, got <value>`
class ConfigReader {
 public:
  /// `config` must outlive the reader; `source` is the file's name in messages.
  ConfigReader(const nlohmann::json& config, std::string source);

  int64_t integer(const std::string& field, int64_t otherwise) const;
  /// An integer of at least 1.
  int64_t positive(const std::string& field, int64_t otherwise) const;
  double number(const std::string& field, double otherwise) const;
  bool flag(const std::string& field, bool otherwise) const;
  /// A positive integer, or nothing for null.
  std::optional<int64_t> optional_positive(const std::string& field) const;
  std::vector<std::string> texts(const std::string& field,
                                 const std::vector<std::string>& otherwise) const;
  /// Positive integers: a list, or one number as a list of one.
  std::vector<int64_t> positives(const std::string& field,
                                 const std::vector<int64_t>& otherwise) const;
  /// A list for each level: lists of positive integers or single ones, or one for all levels.
  std::vector<std::vector<int64_t>> positive_lists(
      const std::string& field, const std::vector<std::vector<int64_t>>& otherwise) const;
  /// A list of flags, or one flag as a list of one.
  std::vector<bool> flags(const std::string& field, const std::vector<bool>& otherwise) const;

  /// Throws unless the field is left out or has one of the values that we support.
  void supports(const std::string& field, const std::vector<nlohmann::json>& values) const;
  /// Throws the reader's error about one field.
  [[noreturn]] void fail(const std::string& field, const std::string& expected) const;

 private:
  const nlohmann::json* find(const std::string& field) const;

  const nlohmann::json& config_;
  std::string source_;
};

/// The value of one level where a list may also hold a single value for all levels.
template <typename T>
T per_level(const std::vector<T>& values, size_t level) {
  return values.size() == 1 ? values.front() : values.at(level);
}

}  // namespace sd
