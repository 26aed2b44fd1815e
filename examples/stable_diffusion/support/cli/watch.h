// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

namespace cli {

/// Times the parts of a program's work, one after the other.
class Watch {
 public:
  /// Seconds since the last call, or since it was made.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double> passed = now - last_;
    last_ = now;
    return passed.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace cli
