// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "research/hypernetwork/adapter_set.h"
#include "research/hypernetwork/identities.h"
#include "research/hypernetwork/options.h"
#include "research/hypernetwork/subject_loss.h"
#include "research/pretraining/stage_task.h"

namespace hypernetwork {

/// The files of a folder that train_hypernetwork writes.
constexpr const char* kNetworkFile = "hypernetwork.safetensors";
/// What the predictions are around, as adapters; its options are those of all predictions.
constexpr const char* kMeanFile = "mean_adapter.safetensors";

/// What a network is trained on: everything that is frozen or known before the first step.
struct Subjects {
  std::unique_ptr<sd::StableDiffusion> pipeline;
  AdapterSet adapters;
  std::unique_ptr<SubjectLoss> loss;
  Identities learned, held_out;  ///< the latter may be empty
  std::vector<int64_t> chosen;   ///< those of `learned` that the network learns from
  at::Tensor targets;            ///< (identities, n); undefined: none
  at::Tensor mean, spread;       ///< (n)
  int64_t resolution = 0;
};

/// Loads the model and the pictures, and makes the adapters to learn from.
/// Errors: as the parts; c10::ValueError for a model or options that it cannot be done for
Subjects prepare(const TrainOptions& options, const distributed::Group& group);

/// A network that predicts the adapters of an identity from one picture.
/// Equation: weight_loss mean(((t - target) / spread)^2) + diffusion_loss L(t)
///           + prediction_penalty mean(((t - mean) / spread)^2)
/// Paper:    Ruiz et al. 2023, arXiv:2307.06949, section 3.3
class HyperNetworkTask : public pretraining::StageTask {
 public:
  HyperNetworkTask(const TrainOptions& options, Subjects subjects, const distributed::Group& group,
                   std::vector<cli::Setting> settings);

 private:
  double backward(int64_t step) override;
  training::Numbers figures(int64_t step) override;
  void save_model(const pretraining::MasterWeights& weights) override;

  /// The latents of one picture of each identity for the network to look at.
  static at::Tensor shown(const Identities& data, const std::vector<int64_t>& identities,
                          bool at_random);
  /// What predictions are around: the mean of the adapters to learn from or, without any, of the
  /// predictions for the things that the network learns from.
  /// Shapes: (n)
  at::Tensor mean_adapter();
  void draw(int64_t step, const at::Tensor& values);

  TrainOptions given_;
  Subjects subjects_;
  HyperNetwork network_{nullptr};
};

/// Everything that train_hypernetwork does. Returns the number of steps done in all.
int64_t train_hypernetwork(const TrainOptions& options, const distributed::Group& group,
                           std::vector<cli::Setting> settings);

}  // namespace hypernetwork
