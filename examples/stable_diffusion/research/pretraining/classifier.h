// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

#include "research/pretraining/dataset.h"
#include "research/pretraining/stages.h"

namespace pretraining {

/// A small convolutional network that tells the vocabulary's emoji apart. It learns from true
/// pictures alone and shares nothing with the model, so what it recognises in a drawn picture is
/// there.
class Classifier {
 public:
  /// `options`: `steps`, `batch` and `learning_rate` of its training.
  Classifier(int64_t classes, const nlohmann::json& options);

  /// The place that each picture is most likely of.
  /// Shapes: (N, 3, H, W) in [-1, 1] to (N) int64
  at::Tensor classify(const at::Tensor& pictures);

  /// Takes what an earlier training with the same options left in this file, if there is one.
  bool load(const std::string& path);
  void save(const std::string& path) const;

  const nlohmann::json& options() const { return options_; }
  torch::nn::Sequential& network() { return network_; }

 private:
  nlohmann::json options_;
  torch::nn::Sequential network_;
};

/// Learns the places of the emoji in `composer.choice()`, about a minute on one core: a stage of its
/// own, in `<output_dir>/runs/classifier-<options>`, which goes on where it was stopped.
/// Errors: c10::Error if it was asked to stop before its end
void train_classifier(Classifier& classifier, Composer& composer, const StageOptions& options);

/// Share of equal entries.
double agreement(const at::Tensor& found, const std::vector<int64_t>& expected);

}  // namespace pretraining
