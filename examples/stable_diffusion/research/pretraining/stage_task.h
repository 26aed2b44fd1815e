// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "research/pretraining/master_weights.h"
#include "research/pretraining/stages.h"
#include "training/task.h"

namespace pretraining {

/// One step of a stage: forward and backward of this process's share of the batch, then the update.
class StageEngine : public training::Engine {
 public:
  /// What a stage does in a step: forward and backward, over which the gradients are summed up in
  /// the modules; returns the loss. All randomness comes from torch's default generator, which is
  /// seeded from the step.
  using Backward = std::function<double(int64_t step)>;

  StageEngine(MasterWeights weights, training::LearningRate rate, const nlohmann::json& stage,
              const StageOptions& options, Backward backward);

  training::StepReport step(const std::function<bool()>& asked_to_stop) override;
  int64_t steps_done() const override { return done_; }
  int64_t trained_values() const override { return weights_.bank().values().numel(); }
  bool is_finite() const override;
  torch::TensorOptions computes_in() const override { return computes_in_; }
  const distributed::Group& group() const override { return group_; }
  std::shared_ptr<void> averaged() override;
  void share_state() override;
  lightlora::TensorMap state() const override;
  void load_state(const lightlora::TensorMap& state) override;

  MasterWeights& weights() { return weights_; }
  const MasterWeights& weights() const { return weights_; }

 private:
  MasterWeights weights_;
  training::LearningRate rate_;
  torch::TensorOptions computes_in_;
  distributed::Group group_;
  Backward backward_;
  uint64_t seed_;
  int64_t done_ = 0;
};

/// A stage as a task of `training::train`, whose checkpoints, log and settings lie in
/// `<output_dir>/runs/<stage>`. Its models compute with averages wherever they are looked at.
class StageTask : public training::Task {
 public:
  /// Runs the stage to its last step, to `stop_at`, or until Ctrl-C, from its last checkpoint on if
  /// there is one. Returns the number of steps done in all.
  int64_t run();

  training::Engine& engine() override { return *engine_; }
  const training::Plan& plan() const override { return plan_; }
  const std::map<std::string, std::string>& fingerprints() const override { return fingerprints_; }
  /// The engine's state is all there is.
  void save(const std::string& /*folder*/) const override {}
  void load(const std::string& /*folder*/) override {}
  void validate(training::RunLog& log) override;
  /// Writes the model's folder.
  void finish() override;

 protected:
  StageTask(const std::string& name, const StageOptions& options);

  /// For after the modules are as they start.
  void train_parts(const std::vector<TrainedPart>& parts, const std::vector<std::string>& by_muon);

  virtual double backward(int64_t step) = 0;
  /// Figures of the averaged model, and its pictures into `<output_dir>/samples`.
  virtual training::Numbers figures(int64_t step) = 0;
  /// Writes the model's folder from these averages.
  virtual void save_model(const MasterWeights& weights) = 0;

  at::ScalarType dtype() const { return options_.bf16 ? at::kBFloat16 : at::kFloat; }
  at::MemoryFormat layout() const {
    return options_.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
  /// Where this stage keeps what only it reads.
  std::string run_dir() const { return run_.output_dir; }

  std::string name_;
  StageOptions options_;
  nlohmann::json stage_;  ///< its part of the configuration

 private:
  training::Plan make_plan() const;

  training::RunOptions run_;
  training::Plan plan_;
  std::map<std::string, std::string> fingerprints_;
  std::optional<StageEngine> engine_;
};

/// The learning rate of a stage: its `schedule` of `learning_rate`, over `warmup_steps` and, for
/// warmup_stable_decay, the last `decay_share` of the `steps`.
training::LearningRate schedule_of(const nlohmann::json& stage);

}  // namespace pretraining
