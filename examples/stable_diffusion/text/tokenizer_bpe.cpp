// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_bpe.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <queue>
#include <tuple>

#include "text/tokenizer_text.h"

namespace sd {
namespace {

const std::string word_end = "</w>";

// GPT-2's table: printable Latin-1 stands for itself, every other byte for a character from U+0100.
const std::array<std::string, 256>& byte_characters() {
  static const auto table = [] {
    std::array<std::string, 256> characters;
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      characters[b] = encode_utf8({printable ? static_cast<char32_t>(b) : next++});
    }
    return characters;
  }();
  return table;
}

uint64_t pair_key(int64_t left, int64_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

}  // namespace

// A symbol of a word as a linked list over a vector; `id` is -1 once it is merged into its left
// one.
struct BytePairEncoder::Symbol {
  int64_t id;
  int64_t previous, next;
};

Vocabulary BytePairEncoder::vocabulary_of(const Merges& merges) {
  // The bytes that stand for themselves come first, then those with a character from U+0100.
  std::vector<std::string> characters(byte_characters().begin(), byte_characters().end());
  std::stable_sort(characters.begin(), characters.end(), [](const auto& a, const auto& b) {
    return decode_utf8(a)[0] < decode_utf8(b)[0];
  });
  Vocabulary vocabulary;
  const auto add = [&](const std::string& token) {
    vocabulary.emplace(token, static_cast<int64_t>(vocabulary.size()));
  };
  for (const auto& character : characters) add(character);
  for (const auto& character : characters) add(character + word_end);
  for (const auto& [left, right] : merges) add(left + right);
  add("<|startoftext|>");
  add("<|endoftext|>");
  return vocabulary;
}

BytePairEncoder::BytePairEncoder(Vocabulary vocabulary, const Merges& merges,
                                 std::string unknown_token, std::string source)
    : vocabulary_(std::move(vocabulary)),
      unknown_token_(std::move(unknown_token)),
      source_(std::move(source)) {
  const auto require = [&](const std::string& token) {
    const auto id = id_of(token);
    TORCH_CHECK(id.has_value(), "'", source_,
                "': expected every merge to be in the vocabulary, got '", token,
                "' without an id; hint: vocabulary and merges come from two tokenizers");
    return *id;
  };
  merges_.reserve(merges.size());
  int64_t rank = 0;
  for (const auto& [left, right] : merges) {
    merges_[pair_key(require(left), require(right))] = {rank++, require(left + right)};
  }
}

std::optional<int64_t> BytePairEncoder::id_of(const std::string& token) const {
  const auto entry = vocabulary_.find(token);
  if (entry == vocabulary_.end()) return std::nullopt;
  return entry->second;
}

const BytePairEncoder::Merge* BytePairEncoder::find_merge(int64_t left, int64_t right) const {
  const auto entry = merges_.find(pair_key(left, right));
  return entry == merges_.end() ? nullptr : &entry->second;
}

std::vector<BytePairEncoder::Symbol> BytePairEncoder::symbols_of(const std::string& word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  const auto count = static_cast<int64_t>(word.size());
  for (int64_t i = 0; i < count; ++i) {
    std::string token = byte_characters()[static_cast<unsigned char>(word[i])];
    if (i + 1 == count) token += word_end;
    auto id = id_of(token);
    if (!id) id = id_of(unknown_token_);
    TORCH_CHECK(id.has_value(), "'", source_, "': expected the unknown token '", unknown_token_,
                "' in the vocabulary, got none; hint: it stands for '", token, "'");
    symbols.push_back({*id, i - 1, i + 1 < count ? i + 1 : -1});
  }
  return symbols;
}

void BytePairEncoder::encode(const std::string& word, std::vector<int64_t>& ids) const {
  auto symbols = symbols_of(word);
  using Candidate = std::tuple<int64_t, int64_t, int64_t>;  // rank, position, merged id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int64_t position) {
    if (position < 0 || symbols[position].next < 0) return;
    const auto* merge = find_merge(symbols[position].id, symbols[symbols[position].next].id);
    if (merge) queue.emplace(merge->rank, position, merge->id);
  };
  for (size_t i = 0; i < symbols.size(); ++i) offer(static_cast<int64_t>(i));
  while (!queue.empty()) {
    const auto [rank, position, id] = queue.top();
    queue.pop();
    Symbol& left = symbols[position];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const auto* merge = find_merge(left.id, right.id);
    if (!merge || merge->id != id) continue;  // one of the two was merged with another since
    left.id = id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = position;
    offer(left.previous);
    offer(position);
  }
  for (const auto& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

std::string BytePairEncoder::bytes_of(const std::string& token) {
  static const auto bytes = [] {
    std::unordered_map<std::string, char> table;
    for (int b = 0; b < 256; ++b) table[byte_characters()[b]] = static_cast<char>(b);
    return table;
  }();
  const bool ends_word =
      token.size() > word_end.size() &&
      token.compare(token.size() - word_end.size(), word_end.size(), word_end) == 0;
  std::string out;
  const std::string body = ends_word ? token.substr(0, token.size() - word_end.size()) : token;
  for (const char32_t c : decode_utf8(body)) {
    const auto entry = bytes.find(encode_utf8({c}));
    if (entry == bytes.end()) return token;  // an added token is its own text
    out.push_back(entry->second);
  }
  if (ends_word) out.push_back(' ');
  return out;
}

}  // namespace sd
