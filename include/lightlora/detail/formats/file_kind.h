// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace lightlora::detail {

/// A kind of file that users meet under the name .safetensors, and what to do about it.
struct OtherKind {
  const char* name;
  const char* hint;
};

/// The kind of file whose first bytes these are, if it is one of them. A safetensors file may begin
/// with any of these bytes too, so this is asked only once its length field has proved senseless.
inline std::optional<OtherKind> other_file_kind(std::string_view bytes) {
  const auto starts = [&](std::string_view with) { return bytes.substr(0, with.size()) == with; };
  constexpr const char* convert =
      "load it in Python with torch.load(..., weights_only=True) and save it with safetensors";
  constexpr const char* again = "download the file itself";
  if (bytes.empty()) return OtherKind{"an empty file", "download it again"};
  if (starts("version https://git-lfs")) {
    return OtherKind{"a Git LFS pointer", "run 'git lfs pull' where it was cloned"};
  }
  if (starts("PK\x03\x04")) return OtherKind{"a zip archive (as torch.save writes)", convert};
  if (starts("\x80") && bytes.size() > 1 && bytes[1] >= 2 && bytes[1] <= 5) {
    return OtherKind{"a Python pickle", convert};
  }
  for (const char* head : {"\x89PNG\r\n", "\xFF\xD8\xFF", "GIF8", "BM"}) {
    if (starts(head)) return OtherKind{"a picture", "name the file of weights itself"};
  }
  if (starts("RIFF") && bytes.substr(0, 16).find("WEBP") != bytes.npos) {
    return OtherKind{"a picture", "name the file of weights itself"};
  }
  if (starts("GGUF")) return OtherKind{"a GGUF file", "only safetensors files are read here"};
  if (starts("\x1F\x8B")) return OtherKind{"a gzip archive", "unpack it first"};
  const size_t text = bytes.find_first_not_of(" \t\r\n");
  if (text == bytes.npos) return std::nullopt;
  if (bytes[text] == '<') return OtherKind{"a web page (HTML)", again};
  if (bytes[text] == '{' && bytes.find("\"weight_map\"") != bytes.npos) {
    return OtherKind{"the JSON index of a model in several files",
                     "name one of the files it lists"};
  }
  if (bytes[text] == '{') return OtherKind{"a JSON file", "name the .safetensors file beside it"};
  return std::nullopt;
}

}  // namespace lightlora::detail
