// SPDX-License-Identifier: Apache-2.0
#include "text/token_names.h"

#include <algorithm>
#include <string_view>

namespace sd {

namespace {

// The longest name that a text begins with, or the end. In their order it is the last name that is
// not behind the text, or what the two have in common is looked up in its place.
TokenNames::const_iterator longest_name(std::u32string_view text, const TokenNames& names) {
  while (!text.empty()) {
    auto place = names.upper_bound(text);
    if (place == names.begin()) break;
    --place;
    const std::u32string_view name = place->first;
    const auto differs =
        std::mismatch(name.begin(), name.end(), text.begin(), text.end()).first - name.begin();
    if (static_cast<std::size_t>(differs) == name.size()) return place;
    text = text.substr(0, static_cast<std::size_t>(differs));
  }
  return names.end();
}

}  // namespace

void add_name(TokenNames& names, const std::u32string& name, int64_t id) {
  if (name.empty()) return;
  const auto known = names.emplace(name, id).first;
  known->second = std::min(known->second, id);
}

void remove_name(TokenNames& names, const std::u32string& name, int64_t id) {
  const auto known = names.find(name);
  if (known != names.end() && known->second == id) names.erase(known);
}

void cut_names(const std::u32string& text, const TokenNames& names,
               const std::function<void(const std::u32string&)>& on_text,
               const std::function<void(int64_t)>& on_id) {
  const std::u32string_view whole = text;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto name = longest_name(whole.substr(at), names);
    if (name == names.end()) {
      ++at;
      continue;
    }
    if (begin < at) on_text(text.substr(begin, at - begin));
    on_id(name->second);
    begin = at += name->first.size();
  }
  if (begin < text.size()) on_text(text.substr(begin));
}

}  // namespace sd
