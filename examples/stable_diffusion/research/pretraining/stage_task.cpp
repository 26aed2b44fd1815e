// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/stage_task.h"

#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "research/pretraining/folder.h"
#include "support/cli/fmt.h"
#include "support/distributed/fingerprint.h"
#include "training/checkpoint.h"
#include "training/run.h"

namespace pretraining {
namespace {

constexpr double kMaxNorm = 1.0;

int64_t positive(const std::string& name, const nlohmann::json& stage, const char* field,
                 int64_t otherwise) {
  const int64_t value = stage.value(field, otherwise);
  TORCH_CHECK_VALUE(value > 0, name, ": expected ", field, " to be positive, got ", value);
  return value;
}

// Changed steps are no other run: a stage may go on for longer than it was to.
std::string fingerprint_of(nlohmann::json config, const std::string& stage) {
  for (const char* free : {"steps", "decay_share", "validate_every", "save_every"}) {
    config[stage].erase(free);
  }
  distributed::Fingerprint print;
  print.add(config.dump());
  return print.hexadecimal();
}

}  // namespace

training::LearningRate schedule_of(const nlohmann::json& stage) {
  const int64_t steps = stage.at("steps");
  const std::string name = stage.value("schedule", "cosine");
  const auto& choices = training::schedule_choices();
  const auto found = std::find_if(choices.begin(), choices.end(),
                                  [&](const auto& choice) { return choice.first == name; });
  TORCH_CHECK_VALUE(found != choices.end(), "schedule: expected one of ",
                    fmt::format("{}", fmt::join(cli::words_of(choices), ", ")), ", got ", name);
  const double share = stage.value("decay_share", 0.3);
  return {found->second,
          stage.at("learning_rate"),
          stage.value("warmup_steps", 0),
          steps,
          /*cycles=*/1,
          /*power=*/1,
          std::lround(share * static_cast<double>(steps))};
}

at::Tensor share_of_batch(const distributed::Group& group, const at::Tensor& batch) {
  const int64_t count = batch.size(0) / group.size();
  return batch.narrow(0, group.rank() * count, count);
}

StageEngine::StageEngine(MasterWeights weights, training::LearningRate rate,
                         const nlohmann::json& stage, const StageOptions& options,
                         Backward backward)
    : weights_(std::move(weights)),
      rate_(std::move(rate)),
      computes_in_(at::device(options.device).dtype(options.bf16 ? at::kBFloat16 : at::kFloat)),
      group_(options.group),
      backward_(std::move(backward)),
      seed_(stage.value("seed", 0)) {}

training::StepReport StageEngine::step(const std::function<bool()>& asked_to_stop) {
  training::StepReport report;
  torch::manual_seed(seed_ * 1000003 + static_cast<uint64_t>(done_));
  auto& bank = weights_.bank();
  bank.zero_gradients();
  const double loss = backward_(done_);
  weights_.take_gradients();
  const bool stop = asked_to_stop && asked_to_stop();
  const auto numbers = torch::tensor({loss, stop ? 1.0 : 0.0}, at::kFloat);
  group_.average({bank.gradients(), numbers});
  report.loss = group_.size() == 1 ? loss : numbers[0].item<double>();
  report.stop = numbers[1].item<double>() > 0;
  report.gradient_norm = bank.clip(kMaxNorm).item<double>();
  TORCH_CHECK(std::isfinite(report.gradient_norm), "pretraining: step ", done_ + 1,
              ": expected finite gradients, got ", report.gradient_norm,
              "; hint: a lower learning_rate");
  report.learning_rate = rate_.at(done_);
  weights_.step(report.learning_rate);
  ++done_;
  return report;
}

bool StageEngine::is_finite() const {
  return weights_.bank().values().isfinite().all().item<bool>();
}

std::shared_ptr<void> StageEngine::averaged() {
  weights_.use_averages();
  return {nullptr, [this](void* /*nothing*/) { weights_.use_values(); }};
}

void StageEngine::share_state() {
  if (group_.size() == 1) return;
  auto shared = state();
  std::vector<at::Tensor> tensors;
  for (const auto& item : shared) tensors.push_back(item.second);
  group_.broadcast(tensors);
  if (!group_.is_main()) load_state(shared);
}

lightlora::TensorMap StageEngine::state() const {
  auto state = weights_.state();
  state["steps"] = torch::tensor({done_}, at::kLong);
  return state;
}

void StageEngine::load_state(const lightlora::TensorMap& state) {
  const auto steps = state.find("steps");
  constexpr int64_t kMostSteps = int64_t{1} << 40;
  TORCH_CHECK(steps != state.end() && steps->second.numel() == 1 &&
                  steps->second.scalar_type() == at::kLong,
              "expected the number of steps in the state, got none");
  done_ = steps->second[0].item<int64_t>();
  TORCH_CHECK(done_ >= 0 && done_ <= kMostSteps, "expected a number of steps in the state, got ",
              done_, "; hint: the checkpoint is damaged");
  weights_.load_state(state);
}

StageTask::StageTask(const std::string& name, const StageOptions& options)
    : name_(name), options_(options), stage_(options.config.at(name)) {
  torch::manual_seed(stage_.value("seed", 0));
  const int64_t steps = positive(name, stage_, "steps", 0);
  run_.output_dir = options.output_dir + "/runs/" + name;
  run_.checkpointing_steps = positive(name, stage_, "save_every", steps);
  run_.checkpoints_total_limit = 1;
  plan_ = make_plan();
  fingerprints_["configuration"] = fingerprint_of(options.config, name);
}

training::Plan StageTask::make_plan() const {
  const int64_t processes = options_.group.size(), batch = positive(name_, stage_, "batch", 0);
  TORCH_CHECK_VALUE(batch % processes == 0, name_, ": expected a batch that ", processes,
                    " processes can share, got ", batch);
  const int64_t steps = stage_.at("steps");
  training::Plan plan;
  plan.program = "pretrain";
  plan.settings = options_.settings;
  plan.resolution = options_.config.at("dataset").at("size");
  plan.steps = options_.stop_at < 0 ? steps : std::min(steps, options_.stop_at);
  plan.samples_per_epoch = stage_.value("latent_pool", steps * batch);
  plan.processes = processes;
  plan.batch_size = batch / processes;
  plan.accumulated_batches = 1;
  plan.total_batch_size = batch;
  plan.validation_interval = positive(name_, stage_, "validate_every", steps);
  plan.learning_rate = stage_.at("learning_rate");
  plan.checkpoint_at_end = true;
  plan.goes_on_with = "the same command";
  return plan;
}

void StageTask::train_parts(const std::vector<TrainedPart>& parts,
                            const std::vector<std::string>& by_muon) {
  MasterWeights::Options options;
  options.ema_decay = stage_.at("ema_decay");
  if (stage_.value("muon", false)) options.by_muon = by_muon;
  engine_.emplace(MasterWeights(parts, dtype(), options), schedule_of(stage_), stage_, options_,
                  [this](int64_t step) { return backward(step); });
}

int64_t StageTask::run() {
  std::optional<training::OutputFolder> folder;
  if (options_.group.is_main()) folder.emplace(run_, /*goes_on=*/true);
  if (!training::list_checkpoints(run_.output_dir).empty()) run_.resume_from_checkpoint = "latest";
  return training::train(*this, run_).steps;
}

void StageTask::validate(training::RunLog& log) {
  log.add(engine_->steps_done(), figures(engine_->steps_done()));
  save_model(engine_->weights());
}

void StageTask::finish() { save_model(engine_->weights()); }

}  // namespace pretraining
