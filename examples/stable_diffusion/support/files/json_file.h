// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sd {

/// The JSON object in a file.
/// Errors: c10::Error if the file is missing, is not JSON, or holds anything but an object
nlohmann::json read_json_file(const std::string& path);

}  // namespace sd
