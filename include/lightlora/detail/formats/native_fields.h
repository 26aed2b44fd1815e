// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/detail/formats/safetensors_format.h>
#include <lightlora/detail/option_text.h>

#include <charconv>
#include <string>
#include <system_error>

// Numbers and texts in the metadata of files that this library wrote.

namespace lightlora::detail {

/// Metadata of a native file, read with the file and the key in every error.
class NativeFields {
 public:
  NativeFields(const std::string& path, const Metadata& metadata)
      : path_(path), metadata_(metadata) {}

  const std::string& path() const { return path_; }
  bool has(const std::string& key) const { return metadata_.count(key) > 0; }
  const std::string& text(const std::string& key) const {
    const auto found = metadata_.find(key);
    TORCH_CHECK(found != metadata_.end(), "'", path_, "': expected metadata '", key, "', got none");
    return found->second;
  }
  template <typename Number>
  Number number(const std::string& key) const {
    const std::string& value = text(key);
    Number result{};
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    TORCH_CHECK(error == std::errc() && end == value.data() + value.size(), "'", path_,
                "': expected a number in metadata '", key, "', got ", shown(value));
    return result;
  }

 private:
  const std::string& path_;
  const Metadata& metadata_;
};

}  // namespace lightlora::detail
