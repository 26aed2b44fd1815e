// SPDX-License-Identifier: Apache-2.0
// What is said of one flag, behind the line that adds it.
#include <CLI/App.hpp>

#include "support/cli/app.h"

namespace cli {

Flag Flag::check(const CLI::Validator& validator) {
  option_->check(validator);
  return *this;
}

Flag Flag::required() {
  option_->required();
  return *this;
}

Flag Flag::needs(const Flag& other) {
  option_->needs(other.option_);
  return *this;
}

Flag Flag::overrules(const std::string& other) {
  app_->overruled_.emplace_back(option_, other);
  return *this;
}

Flag Flag::free_on_resume() {
  app_->free_on_resume_.insert(option_);
  return *this;
}

}  // namespace cli
