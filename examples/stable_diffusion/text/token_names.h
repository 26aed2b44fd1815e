// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace sd {

/// Names of added tokens and their ids.
using TokenNames = std::map<std::u32string, int64_t, std::less<>>;

/// Adds a name; of two tokens of one name the lower id counts. An empty name is none: it would be
/// cut out of a text for ever.
void add_name(TokenNames& names, const std::u32string& name, int64_t id);

/// Takes a name off if it is the id's.
void remove_name(TokenNames& names, const std::u32string& name, int64_t id);

/// Cuts names out of a text: the leftmost first, of several at one place the longest. `on_text` is
/// called with the text between two names, `on_id` with the id of each name. However many names
/// there are, each place of the text costs about as many comparisons as a name has characters.
void cut_names(const std::u32string& text, const TokenNames& names,
               const std::function<void(const std::u32string&)>& on_text,
               const std::function<void(int64_t)>& on_id);

}  // namespace sd
