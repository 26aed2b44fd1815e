// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace images {

/// The bytes of a file, at most `limit` from its start.
/// Errors: c10::Error if it is missing, a folder, or cannot be read
std::vector<uint8_t> read_file(const std::string& path, int64_t limit = INT64_MAX);

}  // namespace images
