// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "support/cli/fmt.h"

namespace distributed {

/// A number that follows from bytes, to find out whether processes have the same (FNV-1a, 64 bits).
class Fingerprint {
 public:
  void add(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < size; ++i) value_ = (value_ ^ bytes[i]) * 1099511628211ULL;
  }
  /// With its end, so that "a", "bc" differs from "ab", "c".
  void add(const std::string& text) { add(text.c_str(), text.size() + 1); }

  uint64_t value() const { return value_; }
  std::string hexadecimal() const { return fmt::format("{:x}", value_); }

 private:
  uint64_t value_ = 14695981039346656037ULL;
};

}  // namespace distributed
