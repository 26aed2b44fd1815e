// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/formats/pickle_values.h>

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What every instruction of a pickle works on. Standard library only.

namespace lightlora::detail {

/// The bytes that are left, and a pickle machine's values, stack, marks and memo.
class PickleMachine {
 protected:
  using Index = uint32_t;
  static constexpr std::size_t kMostValues = 1'000'000;

  explicit PickleMachine(std::string_view bytes) : bytes_(bytes) {}

  [[noreturn]] static void fail(const std::string& expected, const std::string& got) {
    throw ArchiveError("expected " + expected + ", got " + got);
  }
  [[noreturn]] static void malformed(const char* what) {
    fail("a pickle of tensors", std::string("one that is malformed (") + what + ")");
  }

  // Copies of one list or dictionary could otherwise take far more memory than the file.
  void spend(std::size_t items) {
    copied_ += items;
    if (copied_ > bytes_.size()) malformed("it copies its own lists");
  }

  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) malformed("it ends early");
    const auto result = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return result;
  }
  uint64_t number(int width) {
    uint64_t result = 0;
    const auto bytes = take(static_cast<uint64_t>(width));
    for (int i = width; i-- > 0;) {
      result = result << 8 | static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
    }
    return result;
  }
  std::string_view line() {
    const auto end = bytes_.find('\n', at_);
    if (end == bytes_.npos) malformed("it ends early");
    const auto text = take(end - at_);
    take(1);
    return text;
  }

  PickleValue& value(Index index) { return pickle_.values[index]; }
  const std::string& text_of(Index index) {
    if (value(index).kind != PickleKind::text) malformed("something else in place of a text");
    return value(index).text;
  }
  const std::vector<Index>& items_of(Index index) {
    if (value(index).kind != PickleKind::list) malformed("something else in place of a tuple");
    return value(index).items;
  }
  int64_t natural(Index index) {
    if (value(index).kind != PickleKind::integer || value(index).integer < 0) {
      malformed("something else in place of a size");
    }
    return value(index).integer;
  }

  void push(PickleValue value) {
    // A value takes 80 times the byte that it may be made of.
    if (pickle_.values.size() >= kMostValues) malformed("it holds more than a million values");
    pickle_.values.push_back(std::move(value));
    stack_.push_back(static_cast<Index>(pickle_.values.size() - 1));
  }
  Index top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) malformed("nothing on its stack");
    return stack_.back();
  }
  Index pop() {
    const Index result = top();
    stack_.pop_back();
    return result;
  }
  std::vector<Index> pop_many(std::size_t count) {
    std::vector<Index> result(count);
    for (std::size_t i = count; i-- > 0;) result[i] = pop();
    return result;
  }
  std::vector<Index> pop_to_mark() {
    if (marks_.empty()) malformed("no mark on its stack");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Index> result(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return result;
  }
  void extend(PickleKind kind, const std::vector<Index>& items) {
    PickleValue& target = value(top());
    if (target.kind == PickleKind::opaque) return;
    if (target.kind != kind) malformed("items for something other than a list or dictionary");
    if (kind == PickleKind::dict && items.size() % 2 != 0) malformed("a key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }
  void recall(uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) malformed("a value that it never stored");
    stack_.push_back(found->second);
  }

  Pickle pickle_;
  std::vector<Index> stack_;
  std::vector<std::size_t> marks_;
  std::map<uint64_t, Index> memo_;

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
  std::size_t copied_ = 0;
};

}  // namespace lightlora::detail
