// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/variants/variants.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "support/cli/app.h"

namespace training {

/// The options that single variants have, as flags: which there are, their help and their defaults
/// come from each variant's own table.
class OwnFlags {
 public:
  /// Adds a flag for every option of these variants. The object must outlive the app's reading.
  void add_to(cli::App& app, const std::vector<std::string>& variants);
  /// The names of those that differ from their defaults, whatever takes them.
  std::vector<std::string> given() const;
  /// What differs from the defaults.
  /// Errors: c10::ValueError naming the flag for an option that this variant does not take
  lightlora::OwnOptions of(const std::string& variant) const;

 private:
  // What a flag holds, one member for each kind of value.
  struct Value {
    lightlora::OwnOption::Kind kind;
    std::string usual;
    int64_t integer = 0;
    uint64_t natural = 0;
    double real = 0;
    bool toggle = false;
    std::string text = {};

    std::string current() const;
  };

  static void bind(cli::App& app, const lightlora::OwnOption& option, const std::string& help,
                   Value& value);

  std::map<std::string, Value> values_;
};

}  // namespace training
