// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <string>

#include "research/pretraining/dataset.h"

namespace pretraining {

/// A small convolutional network that tells the vocabulary's emoji apart. It learns from true
/// pictures alone and shares nothing with the model, so what it recognises in a drawn picture is
/// there.
class Classifier {
 public:
  /// `options`: `steps`, `batch` and `learning_rate` of its training.
  Classifier(int64_t classes, const nlohmann::json& options);

  /// Learns the places of the emoji in `composer.choice()`; about a minute on one core.
  void train(Composer& composer);

  /// The place that each picture is most likely of.
  /// Shapes: (N, 3, H, W) in [-1, 1] to (N) int64
  at::Tensor classify(const at::Tensor& pictures);

  /// Takes what an earlier training with the same options left in this file, if there is one.
  bool load(const std::string& path);
  void save(const std::string& path) const;

 private:
  nlohmann::json options_;
  torch::nn::Sequential network_;
};

/// Share of equal entries.
double agreement(const at::Tensor& found, const std::vector<int64_t>& expected);

}  // namespace pretraining
