// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

// Unicode text as the CLIP tokenizer of transformers 5 (the Rust `tokenizers` library) sees it.

namespace sd {

/// The code points of `text`.
/// Errors: c10::ValueError if `text` is not well-formed UTF-8
std::u32string decode_utf8(const std::string& text);

/// `text` as UTF-8.
std::string encode_utf8(const std::u32string& text);

/// `bytes` with U+FFFD for each byte that is not part of a well-formed sequence.
std::string replace_malformed_utf8(const std::string& bytes);

/// Unicode normalisation form C with the characters that transformers' tokenizer knows: marks that
/// are newer than its Unicode tables stay where they are, whatever utf8proc would do with them.
std::u32string to_nfc(const std::u32string& text);

/// Form C, then every run of white space to one space, then lower case character by character (a
/// final sigma becomes a plain one; U+0130 becomes two characters). Nothing is dropped.
std::u32string normalize_text(const std::u32string& text);

/// The words that are encoded one by one: runs of letters, single digits, English contractions, and
/// runs of anything else; white space separates and is dropped. `text` is normalised already.
std::vector<std::u32string> split_words(const std::u32string& text);

}  // namespace sd
