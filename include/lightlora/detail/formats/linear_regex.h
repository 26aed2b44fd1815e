// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Regular expressions of files from strangers. std::regex may take exponential time over one, and
// fills the stack over a long text. Standard library only, so that a fuzzer needs no LibTorch.

namespace lightlora::detail {

/// An expression that is not understood: what was expected, and what came.
class RegexError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A regular expression whose matching takes time in proportion to its size times the text's. It
/// knows what Python's `re` and ECMAScript have in common: characters, `.`, `\d \w \s` and their
/// negations, `[...]`, groups, `|`, `* + ? {m,n}`, `^` and `$`; not what cannot be matched so, which
/// is looking ahead and repeating a group's text.
/// Errors: RegexError for anything else, for one that nests deeper than 50 groups, and for one that
///         repeats itself into more than `most_steps` steps
class LinearRegex {
 public:
  explicit LinearRegex(std::string_view text, std::size_t most_steps = 10'000)
      : text_(text), most_steps_(most_steps) {
    const std::size_t root = alternatives(0);
    if (at_ != text_.size()) fail("the end", "')'");
    emit(root);
    step({Op::match, 0, 0});
    nodes_.clear();
    text_ = {};
  }

  /// How many steps it has: what a match costs for each character.
  std::size_t steps() const { return steps_.size(); }

  /// Whether it matches the whole text.
  bool matches(std::string_view text) const {
    std::vector<std::size_t> now, next, seen(steps_.size(), 0);
    std::size_t mark = 0;
    follow(0, 0, text.size(), ++mark, seen, now);
    for (std::size_t i = 0; i < text.size() && !now.empty(); ++i) {
      next.clear();
      ++mark;
      for (const std::size_t at : now) {
        const Step& step = steps_[at];
        if (step.op == Op::set && sets_[step.a].test(static_cast<unsigned char>(text[i]))) {
          follow(at + 1, i + 1, text.size(), mark, seen, next);
        }
      }
      now.swap(next);
    }
    return std::any_of(now.begin(), now.end(),
                       [&](std::size_t at) { return steps_[at].op == Op::match; });
  }

 private:
  using Set = std::bitset<256>;
  enum class Op : uint8_t { set, split, jump, begin, end, match };
  struct Step {
    Op op;
    std::size_t a, b;  // the set, or where to go on
  };
  enum class Kind : uint8_t { set, sequence, choice, repeat, begin, end };
  struct Node {
    Kind kind;
    std::vector<std::size_t> parts = {};
    std::size_t set = 0;
    int least = 0, most = 0;  // -1: without end
  };

  [[noreturn]] static void fail(const std::string& expected, const std::string& got) {
    throw RegexError("expected " + expected + " in a regular expression, got " + got);
  }
  bool take(char wanted) {
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  char next() {
    if (at_ == text_.size()) fail("another character", "its end");
    return text_[at_++];
  }
  std::size_t node(Node made) {
    if (nodes_.size() >= most_steps_) fail("fewer parts", "too many");
    nodes_.push_back(std::move(made));
    return nodes_.size() - 1;
  }
  std::size_t set_node(const Set& set) {
    sets_.push_back(set);
    return node({Kind::set, {}, sets_.size() - 1});
  }

  std::size_t alternatives(int depth) {
    if (depth > 50) fail("at most 50 groups in each other", "more");
    std::vector<std::size_t> parts{sequence(depth)};
    while (take('|')) parts.push_back(sequence(depth));
    return parts.size() == 1 ? parts[0] : node({Kind::choice, parts});
  }
  std::size_t sequence(int depth) {
    std::vector<std::size_t> parts;
    while (at_ < text_.size() && text_[at_] != '|' && text_[at_] != ')') {
      parts.push_back(repeated(atom(depth)));
    }
    return node({Kind::sequence, parts});
  }
  std::size_t atom(int depth) {
    const char c = next();
    if (c == '(') {
      if (take('?') && !take(':')) fail("a plain group", "another kind");
      const std::size_t inner = alternatives(depth + 1);
      if (!take(')')) fail("')'", "its end");
      return inner;
    }
    if (c == '^') return node({Kind::begin});
    if (c == '$') return node({Kind::end});
    if (c == '*' || c == '+' || c == '?' || c == '{') fail("something to repeat", "nothing");
    if (c == '.') return set_node(~Set().set('\n'));
    if (c == '[') return set_node(listed());
    return set_node(c == '\\' ? escaped() : Set().set(static_cast<unsigned char>(c)));
  }
  std::size_t repeated(std::size_t part) {
    while (at_ < text_.size() && std::string_view("*+?{").find(text_[at_]) != text_.npos) {
      const char c = next();
      Node repeat{Kind::repeat, {part}};
      repeat.least = c == '+' ? 1 : 0;
      repeat.most = c == '?' ? 1 : -1;
      if (c == '{') {
        repeat.least = repeat.most = number();
        if (take(',')) repeat.most = at_ < text_.size() && text_[at_] == '}' ? -1 : number();
        if (!take('}')) fail("'}'", "something else");
        if (repeat.most >= 0 && repeat.most < repeat.least) fail("rising numbers", "falling ones");
      }
      take('?');  // lazy: of no consequence for whether it matches
      part = node(std::move(repeat));
    }
    return part;
  }
  int number() {
    int value = 0;
    const std::size_t begin = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' && value < 1000) {
      value = value * 10 + (next() - '0');
    }
    if (begin == at_ || value > 1000) fail("a number up to 1000", "another or none");
    return value;
  }
  Set escaped() {
    const char c = next();
    Set set;
    const auto range = [&](char first, char last) {
      for (int i = first; i <= last; ++i) set.set(static_cast<std::size_t>(i));
    };
    if (c == 'd' || c == 'D' || c == 'w' || c == 'W') range('0', '9');
    if (c == 'w' || c == 'W') range('a', 'z'), range('A', 'Z'), range('_', '_');
    if (c == 's' || c == 'S') range('\t', '\r'), range(' ', ' ');
    if (c == 'D' || c == 'W' || c == 'S') return ~set;
    if (set.any()) return set;
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter) fail("one of \\d, \\w, \\s or an escaped mark", std::string("'\\") + c + "'");
    return set.set(static_cast<unsigned char>(c));
  }
  Set listed() {
    Set set;
    const bool negated = take('^');
    for (bool first = true; first || !take(']'); first = false) {
      const char c = next();
      if (c == '\\') {
        set |= escaped();
        continue;
      }
      char last = c;
      if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        next();
        last = next();
      }
      for (int i = static_cast<unsigned char>(c); i <= static_cast<unsigned char>(last); ++i) {
        set.set(static_cast<std::size_t>(i));
      }
    }
    return negated ? ~set : set;
  }

  std::size_t step(Step made) {
    if (steps_.size() >= most_steps_) {
      fail("at most " + std::to_string(most_steps_) + " steps", "more");
    }
    steps_.push_back(made);
    return steps_.size() - 1;
  }
  void emit(std::size_t index) {
    // A repetition of nothing makes no steps, but may be repeated itself.
    if (++emitted_ > 4 * most_steps_) fail("fewer repetitions", "more");
    const Node& node = nodes_[index];
    if (node.kind == Kind::set) step({Op::set, node.set, 0});
    if (node.kind == Kind::begin) step({Op::begin, 0, 0});
    if (node.kind == Kind::end) step({Op::end, 0, 0});
    if (node.kind == Kind::sequence) {
      for (const std::size_t part : node.parts) emit(part);
    }
    if (node.kind == Kind::choice) emit_choice(node);
    if (node.kind == Kind::repeat) emit_repeat(node);
  }
  void emit_choice(const Node& node) {
    std::vector<std::size_t> jumps;
    for (std::size_t i = 0; i + 1 < node.parts.size(); ++i) {
      const std::size_t split = step({Op::split, 0, 0});
      steps_[split].a = steps_.size();
      emit(node.parts[i]);
      jumps.push_back(step({Op::jump, 0, 0}));
      steps_[split].b = steps_.size();
    }
    emit(node.parts.back());
    for (const std::size_t jump : jumps) steps_[jump].a = steps_.size();
  }
  void emit_repeat(const Node& node) {
    for (int i = 0; i < node.least; ++i) emit(node.parts[0]);
    if (node.most < 0) {
      const std::size_t split = step({Op::split, steps_.size() + 1, 0});
      emit(node.parts[0]);
      step({Op::jump, split, 0});
      steps_[split].b = steps_.size();
    }
    std::vector<std::size_t> splits;
    for (int i = node.least; i < node.most; ++i) {
      splits.push_back(step({Op::split, steps_.size() + 1, 0}));
      emit(node.parts[0]);
    }
    for (const std::size_t split : splits) steps_[split].b = steps_.size();
  }

  // Adds what can be reached from a step without another character.
  void follow(std::size_t from, std::size_t position, std::size_t size, std::size_t mark,
              std::vector<std::size_t>& seen, std::vector<std::size_t>& reached) const {
    std::vector<std::size_t> open{from};
    while (!open.empty()) {
      const std::size_t at = open.back();
      open.pop_back();
      if (seen[at] == mark) continue;
      seen[at] = mark;
      const Step& step = steps_[at];
      if (step.op == Op::split) open.push_back(step.b);
      if (step.op == Op::split || step.op == Op::jump) open.push_back(step.a);
      if (step.op == Op::begin && position == 0) open.push_back(at + 1);
      if (step.op == Op::end && position == size) open.push_back(at + 1);
      if (step.op == Op::set || step.op == Op::match) reached.push_back(at);
    }
  }

  std::string_view text_;
  std::size_t most_steps_, at_ = 0, emitted_ = 0;
  std::vector<Node> nodes_;
  std::vector<Set> sets_;
  std::vector<Step> steps_;
};

}  // namespace lightlora::detail
