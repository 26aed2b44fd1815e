// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <utility>
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

/// Reads what `fold_names` wrote. A text from elsewhere may be made to unfold into far more than
/// itself, or to nest without end, so both are bounded.
class NameUnfolder {
 public:
  explicit NameUnfolder(const std::string& text) : text_(text) {}

  std::vector<std::string> unfold() {
    unfold_into("", 0);
    TORCH_CHECK(at_ == text_.size(), "expected a folded list of names, got '",
                text_.substr(at_, 20), "' left over");
    return std::move(names_);
  }

 private:
  static constexpr std::size_t kMostBytes = 16'000'000;
  static constexpr int kMostLevels = 64;

  void unfold_into(const std::string& prefix, int level) {
    TORCH_CHECK(level <= kMostLevels, "expected a list of names nested at most ", kMostLevels,
                " deep, got one that goes deeper");
    std::string word = prefix;
    while (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '}') {
      if (text_[at_] != '{') {
        word += text_[at_++];
        continue;
      }
      do {
        ++at_;
        unfold_into(word, level + 1);
      } while (at_ < text_.size() && text_[at_] == ',');
      TORCH_CHECK(at_ < text_.size() && text_[at_] == '}', "expected '}' in a list of names");
      ++at_;
      return;
    }
    bytes_ += word.size() + 16;  // about what an empty one costs
    TORCH_CHECK(bytes_ <= kMostBytes, "expected at most ", kMostBytes, " bytes of names, got more");
    names_.push_back(std::move(word));
  }

  const std::string& text_;
  std::size_t at_ = 0, bytes_ = 0;
  std::vector<std::string> names_;
};

}  // namespace detail

/// Many dotted names as one short text: {"a.0.x", "a.0.y", "a.1.x"} gives "a.{0.{x,y},1.x}". The
/// order is kept.
/// Errors: c10::Error if a name holds '{', '}' or ','
inline std::string fold_names(const std::vector<std::string>& names) {
  for (const auto& name : names) {
    TORCH_CHECK(name.find_first_of("{},") == std::string::npos, "'", name,
                "': expected a layer name without '{', '}' and ',', got one with");
  }
  return names.empty() ? "" : detail::fold_range(names, 0, names.size(), 0);
}

/// The names that `fold_names` folded.
/// Errors: c10::Error if the text is malformed, nests deeper than 64 levels, or stands for more
///         than about 16 MB of names
inline std::vector<std::string> unfold_names(const std::string& text) {
  return detail::NameUnfolder(text).unfold();
}

}  // namespace lightlora
