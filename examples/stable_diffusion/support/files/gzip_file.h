// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace sd {

/// The bytes of a file, unpacked if gzip packed them.
/// Errors: c10::Error if the file is missing, cut off or damaged
std::string read_gzip_file(const std::string& path);

}  // namespace sd
