// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

// Prompts as A1111's users write them: weights, BREAK, and any length.

namespace sd {

/// How a prompt is read: `a1111` knows weights and BREAK, `plain` takes each character as it is.
enum class PromptSyntax { a1111, plain };

/// "a1111" or "plain".
/// Errors: c10::ValueError for another word
PromptSyntax parse_prompt_syntax(const std::string& name);
const std::vector<std::string>& prompt_syntax_names();

/// A piece of a prompt and how much it counts.
struct WeightedText {
  std::string text;
  double weight = 1.0;
};

/// A prompt in A1111's grammar: the pieces between one BREAK and the next, neighbours of equal
/// weight joined.
/// Grammar: (x) weight 1.1, (x:1.3) weight 1.3, [x] weight 1/1.1; they nest by multiplication, and
///          one that is not closed reaches to the end; \( \) \[ \] and \\ are the characters.
/// Differs from A1111: BREAK counts inside brackets too, and a second one at once begins one more
/// chunk. Prompt editing ([a:b:0.5], [a|b]) is no part of it
std::vector<std::vector<WeightedText>> parse_prompt(const std::string& text);

/// What the text encoder reads at once, and the weight of each of its tokens.
struct PromptChunk {
  std::vector<int64_t> ids;
  std::vector<double> weights;

  /// Whether any weight differs from 1.
  bool weighted() const;
};

/// A prompt in chunks of the text encoder's length, at least one. Each has begin, up to
/// `model_max_length() - 2` tokens of the text, end and padding; BREAK begins a new one.
std::vector<PromptChunk> prompt_chunks(const Tokenizer& tokenizer, const std::string& text,
                                       PromptSyntax syntax);

}  // namespace sd
