// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sd {

using Vocabulary = std::unordered_map<std::string, int64_t>;
using Merges = std::vector<std::pair<std::string, std::string>>;

/// Byte-level byte-pair encoding with `</w>` behind the last symbol of a word.
/// Each byte of a word is one printable character (GPT-2's table); then, as long as there is one,
/// the neighbouring pair of lowest rank is merged, the leftmost first.
class BytePairEncoder {
 public:
  /// `source` names the file in errors.
  /// Errors: c10::Error if a merge or its result is not in the vocabulary
  BytePairEncoder(Vocabulary vocabulary, const Merges& merges, std::string unknown_token,
                  std::string source);

  /// Appends the ids of one word, given as its UTF-8 bytes. A byte without an entry of its own
  /// becomes the unknown token.
  void encode(const std::string& word, std::vector<int64_t>& ids) const;

  /// The vocabulary that CLIP's training made of merges alone: the characters of all bytes, the
  /// same with `</w>`, the result of each merge, begin and end.
  static Vocabulary vocabulary_of(const Merges& merges);

  /// The bytes behind a token's text, a final `</w>` as a space.
  static std::string bytes_of(const std::string& token);

  std::optional<int64_t> id_of(const std::string& token) const;
  int64_t vocabulary_size() const { return static_cast<int64_t>(vocabulary_.size()); }
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int64_t rank, id;
  };
  struct Symbol;

  const Merge* find_merge(int64_t left, int64_t right) const;
  std::vector<Symbol> symbols_of(const std::string& word) const;

  Vocabulary vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;
  std::string unknown_token_;
  std::string source_;
};

}  // namespace sd
