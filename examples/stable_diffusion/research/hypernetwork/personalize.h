// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "research/hypernetwork/adapter_set.h"
#include "research/hypernetwork/options.h"

namespace hypernetwork {

/// A trained network in the model that it was trained for.
class Predictor {
 public:
  /// `folder` is what train_hypernetwork wrote.
  /// Errors: c10::Error naming the file if the network is for other layers or another base model
  Predictor(const std::string& folder, sd::StableDiffusion& pipeline);

  /// The adapters for the thing in one picture; the set has their values then.
  /// Shapes: latents (1, C, h, w)
  const AdapterSet& predict(const at::Tensor& latents, int64_t iterations = -1);

  /// Their options, and the mean adapter until something is predicted.
  const AdapterSet& adapters() const { return adapters_; }
  const HyperNetwork& network() const { return network_; }
  const std::string& instance_prompt() const { return instance_prompt_; }
  int64_t resolution() const { return resolution_; }

 private:
  void check_base(const HyperNetworkFile& file, const std::string& path) const;

  HyperNetwork network_{nullptr};
  AdapterSet adapters_;
  std::string instance_prompt_;
  int64_t resolution_ = 0;
};

/// What a personalisation wrote, and how long each part of it took.
struct Personalized {
  std::string prediction;             ///< native file of the predicted adapters
  std::string adapters;               ///< of those to use: tuned, or as predicted
  std::vector<std::string> pictures;  ///< drawn with them
  std::vector<std::pair<std::string, double>> seconds;
};

/// From one picture of a thing to adapters that know it: predicts them, goes on from there with a
/// higher rank for a few steps, and draws.
/// Paper: Ruiz et al. 2023, arXiv:2307.06949, "rank-relaxed fast finetuning"
/// Errors: those of the parts
Personalized personalize(const PersonalizeOptions& options);

}  // namespace hypernetwork
