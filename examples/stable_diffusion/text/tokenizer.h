// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/token_names.h"
#include "text/tokenizer_bpe.h"

namespace sd {

/// The CLIP tokenizer, with the ids that transformers 5's `CLIPTokenizer` gives for the same
/// folder. Files:   `tokenizer.json`, or else `vocab.json` with `merges.txt`, or OpenAI's merges
///          alone as `clip_merges.txt.gz`; names and flags of the special tokens from
///          `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`
/// Text:    UTF-8; special and added tokens inside it become their ids
/// Errors:  c10::Error naming the file that is missing or malformed; c10::ValueError for text that
/// is
///          not UTF-8
/// Of added tokens "x", "x_1", "x_2" and so on, all follow where "x" occurs, as in diffusers.
/// A tokenizer that pads with "!" also reads every "!" of a text as padding, as transformers does.
class Tokenizer {
 public:
  /// `default_length` counts when the folder's configuration names no `model_max_length`.
  explicit Tokenizer(const std::string& folder, int64_t default_length = 77);

  /// The ids that the text encoder reads: begin, at most `model_max_length() - 2` of the text, end,
  /// and padding, always `model_max_length()` of them.
  std::vector<int64_t> encode(const std::string& text) const;

  /// The whole text in pieces of that form; the first one is what `encode` returns.
  std::vector<std::vector<int64_t>> encode_chunks(const std::string& text) const;

  /// The ids of the text alone: no begin, no end, nothing cut off, no padding.
  std::vector<int64_t> tokenize(const std::string& text) const;

  /// The form in which the text encoder reads ids: begin, the ids, end, padding.
  /// The count must be at most `model_max_length() - 2`.
  std::vector<int64_t> wrap(const int64_t* ids, size_t count) const;

  /// One line that names what does not fit into so many chunks of `encode`'s length; empty if all
  /// does.
  std::string truncation_warning(const std::string& text, int64_t chunks = 1) const;

  /// The text behind ids, a space after each word; bytes that are no UTF-8 become U+FFFD.
  std::string decode(const std::vector<int64_t>& ids) const;

  /// Makes `text` a token of its own wherever it occurs, also inside a word and in any case, and
  /// returns its id: that of the vocabulary's entry of this name, or the next free one.
  int64_t add_token(const std::string& text);

  /// The same for a concept of several vectors: the tokens `text`, `text_1`, `text_2` and so on are
  /// added, and wherever `text` occurs all of them follow. Returns their ids.
  /// Errors: c10::ValueError if count < 1
  std::vector<int64_t> add_token(const std::string& text, int64_t count);

  /// How many tokens the word has that begins with this id: more than one for a concept of several
  /// vectors.
  int64_t word_length(int64_t id) const {
    const auto found = expansions_.find(id);
    return found == expansions_.end() ? 1 : static_cast<int64_t>(found->second.size());
  }
  /// From now on fills up with this token, which is cut out of texts as special ones are: "!", with
  /// which OpenCLIP's encoders were trained.
  /// Errors: c10::Error if the vocabulary lacks it
  void pad_with(const std::string& token);

  /// The id of a token of the vocabulary or an added one (its exact name, e.g. "cat</w>").
  std::optional<int64_t> token_id(const std::string& token) const;

  /// Ids are below this number (the rows of the text encoder's embedding).
  int64_t size() const;

  int64_t model_max_length() const { return length_; }
  int64_t bos_id() const { return bos_id_; }
  int64_t eos_id() const { return eos_id_; }
  int64_t pad_id() const { return pad_id_; }

 private:
  // A token that is cut out of the text before the text is split into words: out of the raw text,
  // or, if `normalized`, out of the normalised one, where its own name is normalised too.
  struct Added {
    std::string content;
    bool normalized;
  };

  void load(int64_t default_length);
  void load_model(const nlohmann::json& file, std::string unknown);
  void load_special(const nlohmann::json& config, const nlohmann::json& file);
  int64_t insert(const Added& token);
  // Makes a token known to `tokenize`, if it has a text.
  void name_token(int64_t id, const Added& token);
  void join_numbered();
  int64_t require(const std::string& token, const std::string& role) const;

  std::string folder_;
  std::unique_ptr<BytePairEncoder> model_;
  std::map<int64_t, Added> added_;
  std::unordered_map<std::string, int64_t> added_ids_;  // by content, the lowest of several
  std::map<int64_t, std::vector<int64_t>> expansions_;  // of tokens that stand for several
  TokenNames raw_names_, normalized_names_;
  int64_t length_ = 0, bos_id_ = 0, eos_id_ = 0, pad_id_ = 0;
};

}  // namespace sd
