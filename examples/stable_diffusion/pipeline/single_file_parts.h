// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

// What reading and writing a model in a single file share; nothing outside needs it.

namespace sd::single_file {

/// Metadata of files that `save_single_file` wrote.
inline constexpr const char* kConfigKey = "lightlora.config";
/// The same for the texts of a tokenizer, "tokenizer" or "tokenizer_2".
std::string tokenizer_key(const std::string& name);

inline constexpr int64_t kClipVocabulary = 49408;
inline constexpr const char* tokenizer_files[] = {
    "tokenizer.json",          "vocab.json",       "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json"};

bool begins(const std::string& text, const std::string& start);

/// The configuration of a part of a folder in diffusers layout; of "model_index" the index.
std::string config_file(const std::string& folder, const std::string& part);

/// The texts of a tokenizer's files, by name.
nlohmann::json texts_of_tokenizer(const std::filesystem::path& folder);

}  // namespace sd::single_file
