// SPDX-License-Identifier: Apache-2.0
#include "text/prompt.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

namespace sd {
namespace {

constexpr double kBracketWeight = 1.1;

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || (c & 0x80) != 0;
}

// ":1.2)" from `at` on: the weight, and where it ends.
std::optional<std::pair<double, size_t>> weight_at(const std::string& text, size_t at) {
  const auto skip = [&] {
    while (at < text.size() && is_space(text[at])) ++at;
  };
  ++at;
  skip();
  if (at < text.size() && text[at] == '+') ++at;
  const char* begin = text.data() + at;
  double weight = 0;
  const auto result =
      std::from_chars(begin, text.data() + text.size(), weight, std::chars_format::fixed);
  if (result.ec != std::errc() || !std::isfinite(weight)) return std::nullopt;
  at += static_cast<size_t>(result.ptr - begin);
  skip();
  if (at >= text.size() || text[at] != ')') return std::nullopt;
  return std::pair(weight, at + 1);
}

// Reads a prompt from left to right. A closing bracket multiplies the weight of all pieces since
// its opening one.
class PromptParser {
 public:
  std::vector<std::vector<WeightedText>> parse(const std::string& text) {
    for (size_t at = 0; at < text.size();) at = read(text, at);
    while (!round_.empty()) close(round_, kBracketWeight);
    while (!square_.empty()) close(square_, 1.0 / kBracketWeight);
    return sections();
  }

 private:
  // Takes what stands at `at` and returns where it ends.
  size_t read(const std::string& text, size_t at) {
    const char c = text[at];
    if (c == '\\') {
      const bool escapes =
          at + 1 < text.size() && std::string("()[]\\").find(text[at + 1]) != std::string::npos;
      if (escapes) add(text.substr(at + 1, 1));
      return at + (escapes ? 2 : 1);
    }
    if (c == '(') round_.push_back(pieces_.size());
    if (c == '[') square_.push_back(pieces_.size());
    if (c == '(' || c == '[') return at + 1;
    const auto weight = c == ':' && !round_.empty() ? weight_at(text, at) : std::nullopt;
    if (weight) {
      close(round_, weight->first);
      return weight->second;
    }
    if (c == ')' && !round_.empty()) {
      close(round_, kBracketWeight);
    } else if (c == ']' && !square_.empty()) {
      close(square_, 1.0 / kBracketWeight);
    } else if (c == ')' || c == ']' || c == ':') {
      add(std::string(1, c));
    } else {
      const size_t end = std::min(text.find_first_of("\\()[]:", at), text.size());
      add_words(text.substr(at, end - at));
      return end;
    }
    return at + 1;
  }

  // A text without brackets, cut at each BREAK that is a word of its own.
  void add_words(const std::string& text) {
    static const std::string word = "BREAK";
    size_t begin = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
      const size_t end = at + word.size();
      if ((at > 0 && is_word(text[at - 1])) || (end < text.size() && is_word(text[end]))) continue;
      size_t last = at;
      while (last > begin && is_space(text[last - 1])) --last;
      add(text.substr(begin, last - begin));
      breaks_.push_back(pieces_.size());
      begin = end;
      while (begin < text.size() && is_space(text[begin])) ++begin;
    }
    add(text.substr(begin));
  }

  void add(std::string text) {
    if (!text.empty()) pieces_.push_back({std::move(text), 1.0});
  }

  void close(std::vector<size_t>& open, double factor) {
    for (size_t i = open.back(); i < pieces_.size(); ++i) pieces_[i].weight *= factor;
    open.pop_back();
  }

  std::vector<std::vector<WeightedText>> sections() const {
    std::vector<std::vector<WeightedText>> result(1);
    size_t next = 0;
    for (size_t i = 0; i <= pieces_.size(); ++i) {
      for (; next < breaks_.size() && breaks_[next] == i; ++next) result.emplace_back();
      if (i == pieces_.size()) break;
      auto& section = result.back();
      const bool joins = !section.empty() && section.back().weight == pieces_[i].weight;
      if (joins) {
        section.back().text += pieces_[i].text;
      } else {
        section.push_back(pieces_[i]);
      }
    }
    return result;
  }

  std::vector<WeightedText> pieces_;
  std::vector<size_t> breaks_, round_, square_;  // positions among the pieces
};

}  // namespace

const std::vector<std::string>& prompt_syntax_names() {
  static const std::vector<std::string> names{"a1111", "plain"};
  return names;
}

PromptSyntax parse_prompt_syntax(const std::string& name) {
  if (name == "a1111") return PromptSyntax::a1111;
  TORCH_CHECK_VALUE(name == "plain", "--prompt_syntax: expected a1111 or plain, got '", name, "'");
  return PromptSyntax::plain;
}

std::vector<std::vector<WeightedText>> parse_prompt(const std::string& text) {
  return PromptParser().parse(text);
}

bool PromptChunk::weighted() const {
  return std::any_of(weights.begin(), weights.end(), [](double weight) { return weight != 1.0; });
}

std::vector<PromptChunk> prompt_chunks(const Tokenizer& tokenizer, const std::string& text,
                                       PromptSyntax syntax) {
  const auto sections = syntax == PromptSyntax::a1111
                            ? parse_prompt(text)
                            : std::vector<std::vector<WeightedText>>{{{text, 1.0}}};
  const auto room = static_cast<size_t>(tokenizer.model_max_length() - 2);
  std::vector<PromptChunk> chunks;
  std::vector<int64_t> ids;
  std::vector<double> weights;
  const auto finish = [&] {
    PromptChunk chunk{tokenizer.wrap(ids.data(), ids.size()), {1.0}};
    chunk.weights.insert(chunk.weights.end(), weights.begin(), weights.end());
    chunk.weights.resize(chunk.ids.size(), 1.0);
    chunks.push_back(std::move(chunk));
    ids.clear();
    weights.clear();
  };
  for (size_t i = 0; i < sections.size(); ++i) {
    if (i > 0) finish();
    for (const auto& piece : sections[i]) {
      for (const int64_t id : tokenizer.tokenize(piece.text)) {
        // A word of several vectors goes into the next chunk as a whole, as in A1111.
        const auto length = std::min(static_cast<size_t>(tokenizer.word_length(id)), room);
        if (ids.size() + length > room) finish();
        ids.push_back(id);
        weights.push_back(piece.weight);
      }
    }
  }
  if (!ids.empty() || chunks.empty()) finish();
  return chunks;
}

}  // namespace sd
