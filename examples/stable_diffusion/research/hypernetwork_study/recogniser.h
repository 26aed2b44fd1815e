// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <string>
#include <vector>

#include "support/images/image.h"

namespace hyperstudy {

/// A small convolutional network that learned to tell the training side's things apart, whatever is
/// behind them: its features stand for what a thing looks like, also one that it has never seen. It
/// shares nothing with the models that are measured.
class Recogniser {
 public:
  explicit Recogniser(int64_t classes);

  /// Learns which thing each picture shows.
  /// Shapes: pictures (N, 3, 64, 64) in [-1, 1], things (N) int64
  void train(const at::Tensor& pictures, const at::Tensor& things, int64_t steps);

  /// Shapes: (N, 3, 64, 64) in [-1, 1] to (N, features), rows of length 1
  at::Tensor features(const at::Tensor& pictures);

  /// Takes what an earlier training with the same settings left in this file, if there is one.
  bool load(const std::string& path, const std::string& settings);
  void save(const std::string& path, const std::string& settings) const;

 private:
  torch::nn::Sequential network_;
  torch::nn::Linear head_{nullptr};
};

/// Pictures as the recogniser takes them.
/// Shapes: (N, 3, 64, 64) in [-1, 1]
at::Tensor small_pictures(const std::vector<images::Image>& pictures);

}  // namespace hyperstudy
