// SPDX-License-Identifier: Apache-2.0
// What a file from a stranger may ask of the application; the library's readers have bounds of
// their own. docs/limits.md lists them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <system_error>

namespace sd::limits {

constexpr uint64_t kJsonBytes = 16'000'000;  // of a JSON file; a tokenizer's has 4 MB
constexpr int kJsonDepth = 64;               // brackets in each other
constexpr std::size_t kJsonValues = 1'000'000;
constexpr uint64_t kMergesBytes = 16'000'000;  // of a tokenizer's merges, unpacked
constexpr uint64_t kYamlBytes = 1'000'000;     // of the original code's configuration
constexpr std::size_t kAddedTokens = 1'000'000;
constexpr std::size_t kTokenBytes = 256;        // of an added token
constexpr int64_t kTokenId = int64_t{1} << 31;  // ids are below it
constexpr int64_t kEmptyRows = 100'000;        // of an embedding, between its own rows and a new id
constexpr std::size_t kModelTensors = 30'000;  // of a model in one file; SDXL's has 2500

// Of a model's configuration.
constexpr int64_t kLevels = 8;         // of resolution
constexpr int64_t kBlockLayers = 32;   // in a block; transformers in an attention
constexpr int64_t kTextLayers = 128;   // of a text encoder
constexpr int64_t kChannels = 32'768;  // of any layer
constexpr int64_t kVocabulary = 1'000'000;
constexpr int64_t kPositions = 16'384;  // of a text encoder
constexpr int64_t kKernel = 31;
constexpr int64_t kSampleSize = 8192;  // of latents or pictures, by default
constexpr int64_t kTrainTimesteps = 100'000;

/// Whether there is something of a name that a stranger may have written. A name that no file system
/// takes, such as one of 300 letters, is nothing, where std::filesystem::exists throws without saying
/// which file holds the name.
inline bool exists(const std::filesystem::path& path) {
  std::error_code refused;
  return std::filesystem::exists(path, refused);
}

}  // namespace sd::limits
