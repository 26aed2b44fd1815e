// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sd {

/// The JSON object in a file.
/// Errors: c10::Error if the file is missing, is no regular file, is not JSON, holds anything but an
/// object, or goes beyond the limits of support/files/limits.h
nlohmann::json read_json_file(const std::string& path);

/// The JSON value of a text that somebody else may have written; `source` begins the messages, as
/// `'config.json'`.
/// Errors: c10::Error if it is not JSON, or goes beyond the limits of support/files/limits.h
nlohmann::json parse_json(const std::string& text, const std::string& source);

/// What a field of the wrong type or a missing one is, without the number of nlohmann's exception:
/// "key 'emoji' not found".
std::string words_of(const nlohmann::json::exception& error);

}  // namespace sd
