// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "models/clip.h"

namespace training {

/// What the pictures of a learned word have in common.
enum class Property { object, style };

/// What the UNet is told about each sample: the text encoders' states of its caption, and for SDXL
/// the pooled output.
///
/// A frozen encoder's states are computed once per text and kept, so that the encoder is needed no
/// more once all captions were `prepare`d. One that trains runs again for every batch, and one that
/// was not let go of for every text that was not prepared.
class PromptStates {
 public:
  /// States (texts, tokens, width) of texts on the UNet's device and in its dtype.
  using Encoder = std::function<sd::PromptEmbeds(const std::vector<std::string>& texts)>;

  explicit PromptStates(Encoder encode) : encode_(std::move(encode)) {}

  /// Encoders that train, in two halves: the ids of texts for each of them, on the UNet's device,
  /// and the states of ids, which can be recorded.
  using TokenIds = std::function<std::vector<torch::Tensor>(const std::vector<std::string>& texts)>;
  using IdEncoder = std::function<sd::PromptEmbeds(const std::vector<torch::Tensor>& ids)>;
  PromptStates(TokenIds ids, IdEncoder encode)
      : encode_([ids, encode](const auto& texts) { return encode(ids(texts)); }),
        ids_(std::move(ids)),
        encode_ids_(std::move(encode)) {}

  /// Computes what `states` will be asked for; nothing if the encoder trains.
  void prepare(const std::vector<std::string>& texts);
  /// Lets go of the encoder. Errors of later calls: c10::Error for a text that was not prepared
  void release_encoder() { encode_ = nullptr; }

  bool trains() const { return ids_ != nullptr; }
  std::vector<torch::Tensor> ids(const std::vector<std::string>& texts) const {
    return ids_(texts);
  }
  sd::PromptEmbeds of_ids(const std::vector<torch::Tensor>& ids) const { return encode_ids_(ids); }
  /// A row for each text.
  sd::PromptEmbeds states(const std::vector<std::string>& texts);

 private:
  Encoder encode_;
  TokenIds ids_;
  IdEncoder encode_ids_;
  std::map<std::string, sd::PromptEmbeds> kept_;  // one row each
};

/// Captions around a learned word, so that it means the thing alone and not its surroundings:
/// "a photo of <cat>", "a close-up of a <cat>", or for a style "a painting in the style of <cat>".
/// Paper: Gal et al. 2022, arXiv:2208.01618, appendix C
std::vector<std::string> caption_templates(Property property, const std::string& word);

}  // namespace training
