// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <vector>

namespace lightlora {

namespace detail {

// The part of `name` from `start` up to the next dot.
inline std::string component_at(const std::string& name, std::size_t start) {
  return name.substr(start, name.find('.', start) - start);
}

inline std::string fold_range(const std::vector<std::string>& names, std::size_t begin,
                              std::size_t end, std::size_t start) {
  std::vector<std::string> parts;
  for (std::size_t i = begin; i < end;) {
    const std::string head = component_at(names[i], start);
    const std::size_t next = start + head.size() + 1;
    std::size_t j = i + 1;
    // A run of names with this component, each going on after it.
    while (j < end && names[i].size() >= next && names[j].size() >= next &&
           component_at(names[j], start) == head) {
      ++j;
    }
    parts.push_back(names[i].size() < next ? head : head + "." + fold_range(names, i, j, next));
    i = j;
  }
  if (parts.size() == 1) return parts[0];
  std::string text = "{";
  for (std::size_t i = 0; i < parts.size(); ++i) text += (i > 0 ? "," : "") + parts[i];
  return text + "}";
}

inline void unfold_into(const std::string& text, std::size_t& at, const std::string& prefix,
                        std::vector<std::string>& names) {
  std::string word = prefix;
  while (at < text.size() && text[at] != ',' && text[at] != '}') {
    if (text[at] != '{') {
      word += text[at++];
      continue;
    }
    do {
      unfold_into(text, ++at, word, names);
    } while (at < text.size() && text[at] == ',');
    TORCH_CHECK(at < text.size() && text[at] == '}', "lightlora: expected '}' in a list of names");
    ++at;
    return;
  }
  names.push_back(word);
}

}  // namespace detail

/// Many dotted names as one short text: {"a.0.x", "a.0.y", "a.1.x"} gives "a.{0.{x,y},1.x}".
/// The order is kept. Errors: c10::Error if a name holds '{', '}' or ','
inline std::string fold_names(const std::vector<std::string>& names) {
  for (const auto& name : names) {
    TORCH_CHECK(name.find_first_of("{},") == std::string::npos, "lightlora: '", name,
                "': expected a layer name without '{', '}' and ',', got one with");
  }
  return names.empty() ? "" : detail::fold_range(names, 0, names.size(), 0);
}

/// The names that `fold_names` folded. Errors: c10::Error if the text is malformed
inline std::vector<std::string> unfold_names(const std::string& text) {
  std::vector<std::string> names;
  std::size_t at = 0;
  detail::unfold_into(text, at, "", names);
  TORCH_CHECK(at == text.size(), "lightlora: expected a folded list of names, got '",
              text.substr(at, 20), "' left over");
  return names;
}

}  // namespace lightlora
