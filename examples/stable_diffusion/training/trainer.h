// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/cuda/graph.h"
#include "training/batches.h"
#include "training/captions.h"
#include "training/engine.h"
#include "training/learning_rate.h"
#include "training/loss_scaler.h"
#include "training/moving_average.h"
#include "training/optimizer.h"
#include "training/rank_schedule.h"

namespace training {

struct TrainerOptions {
  int64_t gradient_accumulation_steps = 1;
  uint64_t seed = 0;
  double max_grad_norm = 1.0;
  double prior_loss_weight = 1.0;
  bool scale_loss = false;  ///< for fp16 weights
  bool gradient_checkpointing = false;
  /// Record forward and backward of a batch once for each shape and replay it: see cuda::Graph.
  /// Without a GPU the same path runs unrecorded.
  bool cuda_graph = false;
  /// With `cuda_graph`: what cannot be recorded is an error.
  bool require_cuda_graph = false;
  /// Compute sample by sample and add the gradients in fp64, where the order does not count: any
  /// number of processes learns the same bits from the same samples.
  bool batch_invariant = false;
  OptimizerOptions optimizer;
  int64_t total_steps = 0;          ///< of the run, for what follows them; 0: open
  std::optional<double> ema_decay;  ///< of a moving average of what trains; none: no average
  /// The processes that share every batch: each takes its part of it, and the gradients are
  /// averaged.
  distributed::Group group;
};

/// What is trained on what. All models are on one device.
struct TrainerParts {
  sd::UNet2DConditionModel unet;
  DiffusionLoss loss;
  PromptStates prompts;
  SampleSource instance;
  std::optional<SampleSource> prior;         ///< class pictures, for prior preservation
  std::vector<lightlora::Patched> adapters;  ///< active during every batch
  std::vector<ParameterGroup> groups;        ///< what the optimiser moves
};

/// Trains parameters through a frozen UNet.
/// Equation: loss = instance loss + prior_loss_weight * prior loss, both as DiffusionLoss
/// Paper:    Ruiz et al. 2022, arXiv:2208.12242
/// The trained values themselves are no part of its state: the task's files hold them.
class Trainer : public Engine {
 public:
  Trainer(TrainerParts parts, LearningRate learning_rate, TrainerOptions options);

  /// In fp16 only losses that stay infinite are errors.
  StepReport step(const std::function<bool()>& asked_to_stop = {}) override;
  int64_t steps_done() const override { return done_; }
  int64_t updates_done() const override { return done_ - skipped_; }
  int64_t trained_values() const override { return bank_.values().numel(); }
  /// Batches' captions go through here, for a validation loss too.
  PromptStates& prompts() { return parts_.prompts; }
  const DiffusionLoss& loss() const { return parts_.loss; }
  const std::vector<lightlora::Patched>& adapters() const { return parts_.adapters; }
  sd::UNet2DConditionModel& unet() { return parts_.unet; }
  /// The pictures of the subject, or whatever is learned.
  SampleSource& instance() { return parts_.instance; }
  double loss_scale() const override { return loss_scale_; }
  bool is_finite() const override { return bank_.values().isfinite().all().item<bool>(); }

  torch::TensorOptions computes_in() const override {
    return parts_.unet->parameters().front().options();
  }
  const distributed::Group& group() const override { return options_.group; }
  void share_state() override;

  std::shared_ptr<void> averaged() override {
    if (!average_) return nullptr;
    return std::make_shared<MovingAverage::InPlace>(*average_);
  }

  /// Step, optimiser and loss scaler, and with a moving average that and the trained values, which
  /// are otherwise not part of it.
  lightlora::TensorMap state() const override;
  void load_state(const lightlora::TensorMap& state) override;

  /// Puts the adapters into the models while the result lives.
  std::vector<lightlora::Activation> activate() const;

 private:
  /// One shape of batches: the recording and the tensors that it reads and writes.
  struct Recorded {
    LossInputs inputs;
    torch::Tensor loss;
    std::unique_ptr<cuda::Graph> graph;
  };

  torch::Tensor backward(SampleSource& source, int64_t index, double weight);
  torch::Tensor backward(const TrainingBatch& batch, double weight);
  torch::Tensor backward_by_sample(SampleSource& source, int64_t index, double weight);
  LossInputs unread(const TrainingBatch& batch);
  LossInputs read(LossInputs inputs) const;
  torch::Tensor compute(const LossInputs& given, double weight);
  torch::Tensor replay(const LossInputs& inputs, double weight);
  torch::Tensor average(const torch::Tensor& loss, bool stop);
  void seed_dropout(int64_t index) const;
  void add_penalty() const;
  void update(StepReport& report, const torch::Tensor& loss_and_stop);

  TrainerParts parts_;
  LearningRate learning_rate_;
  TrainerOptions options_;
  ParameterBank bank_;
  torch::Tensor exact_sum_;  // of single samples' gradients in fp64, if the options ask for it
  std::vector<std::unique_ptr<Optimizer>> optimizers_;  // one for each slice of the bank
  std::optional<MovingAverage> average_;
  RankSchedule ranks_;
  LossScaler scaler_;
  double loss_scale_ = 1;  // as last read
  bool draws_;             // whether the work on a batch draws random numbers
  std::map<std::string, Recorded> recorded_;
  int64_t done_ = 0;
  int64_t skipped_in_a_row_ = 0, skipped_ = 0;  // steps that the schedule does not count
};

}  // namespace training
