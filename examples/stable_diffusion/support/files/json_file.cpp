// SPDX-License-Identifier: Apache-2.0
#include "support/files/json_file.h"

#include <c10/util/Exception.h>

#include <fstream>

namespace sd {

nlohmann::json read_json_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.good(), "'", path,
              "': expected a JSON file, got none; hint: is the folder a complete diffusers model?");
  nlohmann::json value = nlohmann::json::parse(file, /*cb=*/nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(!value.is_discarded(), "'", path,
              "': expected JSON, got something else; hint: a download that stopped half way, or a "
              "Git LFS pointer");
  TORCH_CHECK(value.is_object(), "'", path, "': expected a JSON object, got ", value.type_name());
  return value;
}

}  // namespace sd
