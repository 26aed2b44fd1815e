// SPDX-License-Identifier: Apache-2.0
#include "support/files/json_file.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>

#include "support/files/limits.h"

namespace sd {

namespace {

// How deep brackets stand in each other, and about how many values there are. The parser would find
// out only when they fill the stack and the memory.
struct JsonSize {
  int depth = 0;
  std::size_t values = 1;
};

JsonSize size_of(const std::string& text) {
  JsonSize size;
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      if (c == '[' || c == '{') size.depth = std::max(size.depth, ++depth);
      if (c == ']' || c == '}') --depth;
      if (c == ',' || c == '[' || c == '{') ++size.values;
    }
  }
  return size;
}

}  // namespace

nlohmann::json parse_json(const std::string& text, const std::string& source) {
  TORCH_CHECK(text.size() <= limits::kJsonBytes, source, ": expected JSON of at most ",
              limits::kJsonBytes, " bytes, got ", text.size());
  const JsonSize size = size_of(text);
  TORCH_CHECK(size.depth <= limits::kJsonDepth && size.values <= limits::kJsonValues, source,
              ": expected JSON of at most ", limits::kJsonDepth, " brackets in each other and ",
              limits::kJsonValues, " values, got more");
  nlohmann::json value = nlohmann::json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(!value.is_discarded(), source,
              ": expected JSON, got something else; hint: a download that stopped half way, or a "
              "Git LFS pointer");
  return value;
}

std::string words_of(const nlohmann::json::exception& error) {
  const std::string text = error.what();
  const auto number = text.find("] ");  // "[json.exception.out_of_range.403] "
  return number == text.npos ? text : text.substr(number + 2);
}

nlohmann::json read_json_file(const std::string& path) {
  TORCH_CHECK(limits::exists(path), "'", path,
              "': expected a JSON file, got none; hint: is the folder a complete diffusers model?");
  auto value = parse_json(lightlora::read_file(path, limits::kJsonBytes), "'" + path + "'");
  TORCH_CHECK(value.is_object(), "'", path, "': expected a JSON object, got ", value.type_name());
  return value;
}

}  // namespace sd
