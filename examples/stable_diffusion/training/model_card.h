// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace training {

/// What a model card says.
struct ModelCard {
  std::string title;
  std::string base_model;                                     ///< folder or name
  std::string command;                                        ///< draws with the files here
  std::string prompt;                                         ///< the words that call the subject
  std::vector<std::pair<std::string, std::string>> settings;  ///< for its table
  std::vector<std::string> pictures;                          ///< files relative to the card
  std::string picture_prompt;                                 ///< what they show
  bool trains_text_encoder = false, is_sdxl = false;
};

/// Writes README.md into a folder, in the form that the Hugging Face hub reads.
void write_model_card(const std::string& folder, const ModelCard& card);

}  // namespace training
