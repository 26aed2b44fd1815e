// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "support/cli/fmt.h"
#include "support/files/gzip_file.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"
#include "text/tokenizer_text.h"

namespace sd {
namespace {

using nlohmann::json;

json optional_json(const std::string& path) {
  return std::filesystem::exists(path) ? read_json_file(path) : json::object();
}

int64_t id_of(const json& id, const std::string& path) {
  const bool known = id.is_number_unsigned() && id.get<uint64_t>() < limits::kTokenId;
  TORCH_CHECK(known, "'", path, "': expected ids of tokens from 0 to ", limits::kTokenId - 1,
              ", got ", id.dump());
  return id.get<int64_t>();
}

Vocabulary vocabulary_from(const json& entries, const std::string& path) {
  TORCH_CHECK(entries.is_object(), "'", path, "': expected a vocabulary object, got ",
              entries.type_name());
  Vocabulary vocabulary;
  vocabulary.reserve(entries.size());
  for (const auto& [token, id] : entries.items()) {
    vocabulary.emplace(token, id_of(id, path));
  }
  return vocabulary;
}

std::pair<std::string, std::string> merge_from(const std::string& line, const std::string& path) {
  const auto space = line.find(' ');
  TORCH_CHECK(space != std::string::npos && line.find(' ', space + 1) == std::string::npos, "'",
              path, "': expected two symbols and one space in each line, got '", line, "'");
  return {line.substr(0, space), line.substr(space + 1)};
}

Merges merges_from_text(const std::string& text, const std::string& path) {
  Merges merges;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.rfind("#version", 0) != 0) merges.push_back(merge_from(line, path));
  }
  return merges;
}

Merges merges_beside_vocabulary(const std::string& path) {
  TORCH_CHECK(std::filesystem::exists(path), "'", path,
              "': expected a file, got none; hint: vocab.json needs merges.txt beside it");
  return merges_from_text(lightlora::read_file(path, limits::kMergesBytes), path);
}

Merges merges_from_json(const json& entries, const std::string& path) {
  TORCH_CHECK(entries.is_array(), "'", path, "': expected a list of merges, got ",
              entries.type_name());
  Merges merges;
  merges.reserve(entries.size());
  for (const auto& entry : entries) {
    const bool pair =
        entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string();
    TORCH_CHECK(pair || entry.is_string(), "'", path, "': expected a merge of two symbols, got ",
                entry.dump());
    merges.push_back(pair ? std::pair(entry[0].get<std::string>(), entry[1].get<std::string>())
                          : merge_from(entry.get<std::string>(), path));
  }
  return merges;
}

// Fields of `value` override those of `into`.
void merge_fields(json& into, const json& value) {
  for (const auto& [key, field] : value.items()) into[key] = field;
}

std::string content_of(const json& token, const std::string& fallback) {
  if (token.is_string()) return token.get<std::string>();
  return token.is_object() ? token.value("content", fallback) : fallback;
}

int64_t id_from(const std::string& key, const std::string& folder) {
  int64_t id = -1;
  const auto* end = key.data() + key.size();
  const auto result = std::from_chars(key.data(), end, id);
  const bool known = id >= 0 && id < limits::kTokenId;
  TORCH_CHECK(result.ec == std::errc() && result.ptr == end && known, "'", folder,
              "': expected token ids as keys of added_tokens_decoder, got '", key, "'");
  return id;
}

const char* const special_roles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                     "pad_token", "cls_token", "mask_token"};

// A role that the configuration leaves out has CLIP's name; sep, cls and mask have none.
std::string default_name(const std::string& role) {
  if (role == "bos_token") return "<|startoftext|>";
  const bool named = role == "eos_token" || role == "unk_token" || role == "pad_token";
  return named ? "<|endoftext|>" : "";
}

int64_t length_of(const json& config, const std::string& folder, int64_t default_length) {
  const json length = config.value("model_max_length", json());
  // transformers writes 1e30 where no limit is known.
  if (!length.is_number() || length.get<double>() > 1e6) return default_length;
  TORCH_CHECK(length.is_number_integer() && length.get<int64_t>() > 2, "'", folder,
              "/tokenizer_config.json': expected a model_max_length above 2, got ", length.dump());
  return length.get<int64_t>();
}

}  // namespace

Tokenizer::Tokenizer(const std::string& folder, int64_t default_length) : folder_(folder) {
  try {
    load(default_length);
  } catch (const json::exception& error) {
    TORCH_CHECK(false, "'", folder,
                "': expected a CLIP tokenizer's JSON files, got a field of another "
                "type (",
                words_of(error), ")");
  }
}

void Tokenizer::load(int64_t default_length) {
  json config = optional_json(folder_ + "/tokenizer_config.json");
  // A configuration that lists its added tokens is complete; an older one has a second file.
  if (!config.contains("added_tokens_decoder")) {
    merge_fields(config, optional_json(folder_ + "/special_tokens_map.json"));
  }
  const json file = optional_json(folder_ + "/tokenizer.json");
  const auto name = [&](const char* role) {
    return content_of(config.value(role, json()), default_name(role));
  };
  load_model(file, name("unk_token"));
  load_special(config, file);
  length_ = length_of(config, folder_, default_length);
  bos_id_ = require(name("bos_token"), "bos_token");
  eos_id_ = require(name("eos_token"), "eos_token");
  pad_id_ = require(name("pad_token"), "pad_token");
}

void Tokenizer::load_model(const json& file, std::string unknown) {
  if (!file.empty()) {
    const std::string path = folder_ + "/tokenizer.json";
    const json model = file.value("model", json::object());
    TORCH_CHECK(model.value("type", std::string("BPE")) == "BPE", "'", path,
                "': expected a BPE model, got ", model.value("type", std::string()),
                "; hint: only CLIP's tokenizer is supported");
    model_ = std::make_unique<BytePairEncoder>(
        vocabulary_from(model.value("vocab", json()), path),
        merges_from_json(model.value("merges", json()), path), std::move(unknown), path);
    return;
  }
  if (const std::string merges = folder_ + "/clip_merges.txt.gz"; std::filesystem::exists(merges)) {
    const Merges all = merges_from_text(read_gzip_file(merges), merges);
    model_ = std::make_unique<BytePairEncoder>(BytePairEncoder::vocabulary_of(all), all,
                                               std::move(unknown), merges);
    return;
  }
  const std::string path = folder_ + "/vocab.json";
  TORCH_CHECK(std::filesystem::exists(path), "'", folder_,
              "': expected vocab.json and merges.txt or tokenizer.json, got neither; hint: is this "
              "the tokenizer folder of a diffusers model?");
  model_ = std::make_unique<BytePairEncoder>(vocabulary_from(read_json_file(path), path),
                                             merges_beside_vocabulary(folder_ + "/merges.txt"),
                                             std::move(unknown), path);
}

void Tokenizer::load_special(const json& config, const json& file) {
  std::map<int64_t, Added> listed;
  const auto list = [&](int64_t id, const json& token, bool normalized_by_default) {
    TORCH_CHECK(!token.value("single_word", false), "'", folder_, "': the added token ",
                token.dump(),
                ": expected single_word false, got true; hint: no CLIP tokenizer has it");
    listed[id] = {content_of(token, ""), token.value("normalized", normalized_by_default)};
    TORCH_CHECK(listed.size() <= limits::kAddedTokens, "'", folder_, "': expected at most ",
                limits::kAddedTokens, " added tokens, got more");
  };
  if (config.contains("added_tokens_decoder")) {
    for (const auto& [id, token] : config["added_tokens_decoder"].items()) {
      list(id_from(id, folder_), token, !token.value("special", false));
    }
  } else {
    const json names = optional_json(folder_ + "/added_tokens.json");
    std::set<std::string> roles;
    for (const auto* role : special_roles) {
      roles.insert(content_of(config.value(role, json()), default_name(role)));
    }
    for (const auto& [content, id] : names.items()) {
      listed[id_of(id, folder_ + "/added_tokens.json")] = {content, roles.count(content) == 0};
    }
    for (const auto& token : file.value("added_tokens", json::array())) {
      list(id_of(token.at("id"), folder_ + "/tokenizer.json"), token,
           !token.value("special", false));
    }
  }
  for (const auto& [id, token] : listed) insert(token);
  std::set<std::string> contents;
  for (const auto& item : listed) contents.insert(item.second.content);
  // A special token that no list has is added too; of two that share a name the later flags count.
  const auto add_special = [&](const json& token, const std::string& fallback) {
    const std::string content = content_of(token, fallback);
    if (content.empty() || contents.count(content) > 0) return;
    const bool typed = token.is_object() && token.contains("__type");
    insert({content, token.is_object() && token.value("normalized", typed)});
  };
  for (const auto* role : special_roles)
    add_special(config.value(role, json()), default_name(role));
  for (const auto* key : {"extra_special_tokens", "additional_special_tokens"}) {
    const json tokens = config.value(key, json());
    if (!tokens.is_array()) continue;
    for (const auto& token : tokens) add_special(token, "");
  }
  join_numbered();
}

// A folder with a concept of several vectors lists "x", "x_1", "x_2" and so on.
void Tokenizer::join_numbered() {
  std::map<std::string, int64_t> ids;
  for (const auto& [id, token] : added_) ids[token.content] = id;
  for (const auto& [content, id] : ids) {
    std::vector<int64_t> all{id};
    auto next = ids.find(content + "_1");
    while (next != ids.end()) {
      all.push_back(next->second);
      next = ids.find(fmt::format("{}_{}", content, all.size()));
    }
    if (all.size() > 1) expansions_[id] = all;
  }
}

int64_t Tokenizer::insert(const Added& token) {
  const int64_t id = token_id(token.content).value_or(size());
  TORCH_CHECK(token.content.size() <= limits::kTokenBytes && id < limits::kTokenId, "'", folder_,
              "': expected added tokens of at most ", limits::kTokenBytes,
              " bytes, with ids below ", limits::kTokenId, ", got '", token.content, "' with ", id);
  added_[id] = token;
  const auto known = added_ids_.emplace(token.content, id).first;
  known->second = std::min(known->second, id);
  name_token(id, token);
  return id;
}

void Tokenizer::name_token(int64_t id, const Added& token) {
  // An id has one name, which may have been of the other kind.
  const auto raw = decode_utf8(token.content), normal = normalize_text(raw);
  remove_name(token.normalized ? raw_names_ : normalized_names_, token.normalized ? raw : normal,
              id);
  add_name(token.normalized ? normalized_names_ : raw_names_, token.normalized ? normal : raw, id);
}

int64_t Tokenizer::add_token(const std::string& text) {
  TORCH_CHECK_VALUE(!text.empty(), "sd::Tokenizer::add_token: expected a name, got none");
  decode_utf8(text);  // refuses a malformed name before anything changes
  return insert({text, /*normalized=*/true});
}

std::vector<int64_t> Tokenizer::add_token(const std::string& text, int64_t count) {
  TORCH_CHECK_VALUE(count >= 1, "sd::Tokenizer::add_token: '", text,
                    "': expected at least one vector, got ", count);
  std::vector<int64_t> ids{add_token(text)};
  for (int64_t i = 1; i < count; ++i) ids.push_back(add_token(fmt::format("{}_{}", text, i)));
  if (count > 1) expansions_[ids.front()] = ids;
  return ids;
}

void Tokenizer::pad_with(const std::string& token) {
  pad_id_ = require(token, "pad_token");
  insert({token, /*normalized=*/false});
}

std::optional<int64_t> Tokenizer::token_id(const std::string& token) const {
  const auto added = added_ids_.find(token);
  return added == added_ids_.end() ? model_->id_of(token) : added->second;
}

int64_t Tokenizer::size() const {
  const int64_t own = model_->vocabulary_size();
  return added_.empty() ? own : std::max(own, added_.rbegin()->first + 1);
}

int64_t Tokenizer::require(const std::string& token, const std::string& role) const {
  const auto id = token_id(token);
  TORCH_CHECK(id.has_value(), "'", folder_, "': expected the ", role, " '", token,
              "' in the vocabulary, got no such entry");
  return *id;
}

std::vector<int64_t> Tokenizer::tokenize(const std::string& text) const {
  std::vector<int64_t> ids;
  const auto on_id = [&](int64_t id) {
    const auto several = expansions_.find(id);
    if (several == expansions_.end()) return ids.push_back(id);
    ids.insert(ids.end(), several->second.begin(), several->second.end());
  };
  const auto on_words = [&](const std::u32string& piece) {
    for (const auto& word : split_words(piece)) model_->encode(encode_utf8(word), ids);
  };
  const auto on_raw = [&](const std::u32string& piece) {
    cut_names(normalize_text(piece), normalized_names_, on_words, on_id);
  };
  cut_names(decode_utf8(text), raw_names_, on_raw, on_id);
  return ids;
}

std::vector<int64_t> Tokenizer::wrap(const int64_t* ids, size_t count) const {
  std::vector<int64_t> out = {bos_id_};
  out.insert(out.end(), ids, ids + count);
  out.push_back(eos_id_);
  out.resize(static_cast<size_t>(length_), pad_id_);
  return out;
}

std::vector<int64_t> Tokenizer::encode(const std::string& text) const {
  return encode_chunks(text).front();
}

std::vector<std::vector<int64_t>> Tokenizer::encode_chunks(const std::string& text) const {
  const auto ids = tokenize(text);
  const auto room = static_cast<size_t>(length_ - 2);
  std::vector<std::vector<int64_t>> chunks;
  size_t at = 0;
  do {
    const size_t count = std::min(room, ids.size() - at);
    chunks.push_back(wrap(ids.data() + at, count));
    at += count;
  } while (at < ids.size());
  return chunks;
}

std::string Tokenizer::truncation_warning(const std::string& text, int64_t chunks) const {
  const auto ids = tokenize(text);
  const auto room = static_cast<size_t>(chunks * (length_ - 2));
  if (ids.size() <= room) return "";
  const std::string lost = decode({ids.begin() + static_cast<std::ptrdiff_t>(room), ids.end()});
  return c10::str("the text encoder reads ", room, " tokens; this part of the prompt (",
                  ids.size() - room, " of ", ids.size(), ") is not used: '", lost, "'");
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
  std::unordered_map<int64_t, const std::string*> tokens;
  for (const auto& [token, id] : model_->vocabulary()) tokens[id] = &token;
  for (const auto& [id, token] : added_) tokens[id] = &token.content;
  std::string bytes;
  for (const int64_t id : ids) {
    const auto token = tokens.find(id);
    TORCH_CHECK_VALUE(token != tokens.end(), "sd::Tokenizer::decode: expected an id below ", size(),
                      ", got ", id);
    bytes += BytePairEncoder::bytes_of(*token->second);
  }
  while (!bytes.empty() && bytes.back() == ' ') bytes.pop_back();
  return replace_malformed_utf8(bytes);
}

}  // namespace sd
