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
#include "support/distributed/group.h"
#include "training/batches.h"
#include "training/captions.h"
#include "training/learning_rate.h"
#include "training/loss_scaler.h"
#include "training/optimizer.h"

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

/// What one step did.
struct StepReport {
  double loss = 0;  ///< with the prior's share
  double learning_rate = 0;
  double gradient_norm = 0;  ///< before clipping; 0 if the step was skipped
  bool skipped = false;      ///< an fp16 overflow: the step was left out
  bool stop = false;         ///< whether a process was asked to stop
};

/// Trains parameters through a frozen UNet.
/// Equation: loss = instance loss + prior_loss_weight * prior loss, both as DiffusionLoss
/// Paper:    Ruiz et al. 2022, arXiv:2208.12242
/// Step k draws the same pictures, crops, noise and timesteps in every run of the same seed, so
/// that a run that goes on from its state equals one that never stopped, bit for bit. All processes
/// of a group hold the same values after every step.
class Trainer {
 public:
  Trainer(TrainerParts parts, LearningRate learning_rate, TrainerOptions options);

  /// One optimiser step. `asked_to_stop` is asked at its end; all processes report alike.
  /// Errors: c10::Error naming the step if the loss or the gradients are not finite (in fp16: if
  /// they stay so); the parameters then hold the values of the last good step.
  StepReport step(const std::function<bool()>& asked_to_stop = {});
  /// Steps done so far.
  int64_t steps_done() const { return done_; }
  /// Without those that fp16 skipped.
  int64_t updates_done() const { return done_ - skipped_; }
  /// How many values train.
  int64_t trained_values() const { return bank_.values().numel(); }
  /// Batches' captions go through here, for a validation loss too.
  PromptStates& prompts() { return parts_.prompts; }
  const DiffusionLoss& loss() const { return parts_.loss; }
  const std::vector<lightlora::Patched>& adapters() const { return parts_.adapters; }
  sd::UNet2DConditionModel& unet() { return parts_.unet; }
  /// The pictures of the subject, or whatever is learned.
  SampleSource& instance() { return parts_.instance; }
  /// 1 unless the loss is scaled for fp16.
  double loss_scale() const { return loss_scale_; }
  /// Whether every trained value is a number.
  bool is_finite() const { return bank_.values().isfinite().all().item<bool>(); }

  const distributed::Group& group() const { return options_.group; }
  /// Gives all processes the values and the state of rank 0.
  void share_state();

  /// Step, optimiser and loss scaler; the trained values are not part of it.
  lightlora::TensorMap state() const;
  /// Errors: c10::Error if the state is of another optimiser or other parameters
  void load_state(const lightlora::TensorMap& state);

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
  LossInputs unread(const TrainingBatch& batch);
  LossInputs read(LossInputs inputs) const;
  torch::Tensor compute(const LossInputs& given, double weight);
  torch::Tensor replay(const LossInputs& inputs, double weight);
  torch::Tensor average(const torch::Tensor& loss, bool stop);
  void seed_dropout(int64_t index) const;
  void update(StepReport& report, const torch::Tensor& loss_and_stop);

  TrainerParts parts_;
  LearningRate learning_rate_;
  TrainerOptions options_;
  ParameterBank bank_;
  torch::Tensor exact_sum_;  // of single samples' gradients in fp64, if the options ask for it
  std::vector<std::unique_ptr<Optimizer>> optimizers_;  // one for each slice of the bank
  LossScaler scaler_;
  double loss_scale_ = 1;  // as last read
  bool draws_;             // whether the work on a batch draws random numbers
  std::map<std::string, Recorded> recorded_;
  int64_t done_ = 0;
  int64_t skipped_in_a_row_ = 0, skipped_ = 0;  // steps that the schedule does not count
};

}  // namespace training
