// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/cli/config.h"

namespace training {

/// A learned word that a prompt uses, and the file that it is in.
struct CardWord {
  std::string file, token;
  bool layerwise = false;  ///< which only this program's pipelines read
};

/// What a model card says.
struct ModelCard {
  enum class Kind { lora, word };
  Kind kind = Kind::lora;
  std::string title;
  std::string base_model;                                     ///< folder or name
  std::string command;                                        ///< draws with the files here
  std::string prompt;                                         ///< the words that call the subject
  std::vector<CardWord> words;                                ///< those that the prompt may use
  int64_t clip_skip = 0;                                      ///< as in training
  std::vector<std::pair<std::string, std::string>> settings;  ///< for its table
  std::vector<std::string> pictures;                          ///< files relative to the card
  std::string picture_prompt;                                 ///< what they show
  bool trains_text_encoder = false, is_sdxl = false;
};

/// The settings of a run that are not as in another.
std::vector<std::pair<std::string, std::string>> unusual_settings(
    const std::vector<cli::Setting>& settings, const std::vector<cli::Setting>& usual);

/// Writes README.md into a folder, in the form that the Hugging Face hub reads.
void write_model_card(const std::string& folder, const ModelCard& card);

}  // namespace training
