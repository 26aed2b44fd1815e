// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <map>
#include <sstream>

#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/stages.h"
#include "support/files/outputs.h"

namespace pretraining {
namespace {

using Symbols = std::vector<std::string>;
using Merge = std::pair<std::string, std::string>;

std::string utf8(char32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  return {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
}

// GPT-2's table: printable Latin-1 stands for itself, every other byte for a character from U+0100.
// CLIP's vocabulary has the printable ones first.
struct ByteAlphabet {
  std::array<std::string, 256> of_byte;
  Symbols in_order;

  ByteAlphabet() {
    Symbols others;
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      of_byte[b] = utf8(printable ? static_cast<char32_t>(b) : next++);
      (printable ? in_order : others).push_back(of_byte[b]);
    }
    in_order.insert(in_order.end(), others.begin(), others.end());
  }
};

// The words of CLIP's pattern in captions of letters, spaces and hyphens.
std::map<std::string, int64_t> count_words(const std::vector<std::string>& captions) {
  std::map<std::string, int64_t> counts;
  for (std::string caption : captions) {
    std::string spaced;
    for (const char c : caption) {
      if (c == '-') {
        spaced += " - ";
      } else {
        spaced += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      }
    }
    std::istringstream words(spaced);
    for (std::string word; words >> word;) ++counts[word];
  }
  return counts;
}

void join(const Merge& merge, Symbols& symbols) {
  Symbols merged;
  for (size_t i = 0; i < symbols.size(); ++i) {
    const bool pair =
        i + 1 < symbols.size() && symbols[i] == merge.first && symbols[i + 1] == merge.second;
    merged.push_back(pair ? merge.first + merge.second : symbols[i]);
    i += pair;
  }
  symbols = std::move(merged);
}

// Joins the most frequent pair (the alphabetically first of equals) until every word is one symbol.
std::vector<Merge> learn_merges(const std::map<std::string, int64_t>& words,
                                const ByteAlphabet& alphabet) {
  std::vector<std::pair<Symbols, int64_t>> split;
  for (const auto& [word, count] : words) {
    Symbols symbols;
    for (const char c : word) symbols.push_back(alphabet.of_byte[static_cast<uint8_t>(c)]);
    symbols.back() += "</w>";
    split.emplace_back(std::move(symbols), count);
  }
  std::vector<Merge> merges;
  for (;;) {
    std::map<Merge, int64_t> pairs;
    for (const auto& [symbols, count] : split) {
      for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs[{symbols[i], symbols[i + 1]}] += count;
    }
    if (pairs.empty()) return merges;
    auto best = pairs.begin();
    for (auto it = pairs.begin(); it != pairs.end(); ++it) {
      if (it->second > best->second) best = it;
    }
    merges.push_back(best->first);
    for (auto& [symbols, count] : split) join(merges.back(), symbols);
  }
}

}  // namespace

int64_t train_tokenizer(const StageOptions& options) {
  const auto emoji = EmojiSet::load(options.dataset_dir + "/emoji.safetensors");
  const ByteAlphabet alphabet;
  const auto merges =
      learn_merges(count_words(all_captions(emoji, options.config.at("dataset"))), alphabet);
  Symbols tokens = alphabet.in_order;
  for (const std::string& symbol : alphabet.in_order) tokens.push_back(symbol + "</w>");
  std::string merge_lines = "#version: 0.2\n";
  for (const auto& [left, right] : merges) {
    tokens.push_back(left + right);
    merge_lines += left + " " + right + "\n";
  }
  const std::string begin = "<|startoftext|>", end = "<|endoftext|>";
  tokens.push_back(begin);
  tokens.push_back(end);
  nlohmann::ordered_json vocabulary;
  for (const std::string& token : tokens) {
    // Two merges may give the same token; its first id counts.
    if (!vocabulary.contains(token)) vocabulary[token] = vocabulary.size();
  }
  const std::string folder = options.output_dir + "/tokenizer";
  sd::make_folder(folder);
  const nlohmann::json special = {
      {"bos_token", begin}, {"eos_token", end}, {"pad_token", end}, {"unk_token", end}};
  nlohmann::json config = special;
  config["tokenizer_class"] = "CLIPTokenizer";
  config["model_max_length"] =
      options.config.at("text_encoder").at("model").at("max_position_embeddings");
  config["add_prefix_space"] = false;
  config["do_lower_case"] = true;
  write_text(folder + "/vocab.json", vocabulary.dump() + "\n");
  write_text(folder + "/merges.txt", merge_lines);
  write_text(folder + "/special_tokens_map.json", special.dump(2) + "\n");
  write_text(folder + "/tokenizer_config.json", config.dump(2) + "\n");
  return static_cast<int64_t>(vocabulary.size());
}

}  // namespace pretraining
