// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/adapters.h"
#include "pipeline/pipeline.h"

namespace sd {

/// A LoRA file and the weight it is used with.
struct LoRAChoice {
  std::string path;
  double weight = 1.0;
  std::optional<double> text_encoder_weight = std::nullopt;  ///< default: `weight`

  double weight_of(const std::string& component) const {
    return component == "unet" ? weight : text_encoder_weight.value_or(weight);
  }
};

/// Reads "FILE" or "FILE:WEIGHT"; a colon counts only if a number follows the last one, and no
/// file has the whole text as its name.
LoRAChoice parse_lora(const std::string& text);

/// LoRA files in the models of a pipeline.
///
/// fp32 weights take them in, and then run at their usual speed. Half-precision weights would round
/// a good part of them away, 5 to 46 % where a delta is 1/30 to 1/300 of its weight, so there they
/// are computed beside the weights while this lives, in the thread that made it.
class AppliedLoRAs {
 public:
  /// `split_rank` cuts the files' ranks first. `changes` says that `set_weight` will be called:
  /// fp32 weights are then kept twice, and otherwise for good what they become.
  /// Errors: c10::Error naming the file, and then the family that it is for, or the layers that do
  ///         not fit
  AppliedLoRAs(StableDiffusion& pipeline, const std::vector<LoRAChoice>& choices,
               std::optional<int64_t> split_rank = std::nullopt, bool changes = false);

  /// Uses this weight for each file in place of its own.
  /// Errors: c10::Error without `changes`, for fp32 weights
  void set_weight(double weight);
  /// The files that hold words too (`bundle_emb`, as OneTrainer writes them), for `read_embeddings`.
  const std::vector<std::string>& with_embeddings() const { return with_embeddings_; }
  /// Runs `use` while the weights hold the files, summed in fp32 and rounded once.
  void while_merged(const std::function<void()>& use);

 private:
  using Weights = std::map<std::string, double>;

  void on();
  void off();
  void merge() const;

  PipelineAdapters adapters_;
  std::map<std::string, Weights> weights_;  // by component, of each set
  std::vector<lightlora::Activation> active_;
  std::vector<std::string> with_embeddings_;
  bool beside_;
  bool changes_;
};

}  // namespace sd
