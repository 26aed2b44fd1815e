// SPDX-License-Identifier: Apache-2.0
#include "training/plan.h"

#include <algorithm>

#include "support/cli/fmt.h"
#include "training/adapters.h"

namespace training {

namespace {

constexpr double kUsualInversionRate = 1e-4;  // diffusers'
constexpr int64_t kMost = int64_t{1} << 40;  // of steps and samples: a counter that nothing reaches

// Of positive numbers.
int64_t times(int64_t a, int64_t b) { return a > kMost / b ? kMost : a * b; }

// Decides what is open, in the plan and in the options, which are this function's own copy.
void decide(TrainingOptions& options, const RunFacts& facts, double usual_rate, Plan& plan) {
  auto& o = options.optimization;
  plan.resolution = options.data.resolution.value_or(facts.resolution);
  plan.samples_per_epoch = facts.samples_per_epoch;
  plan.processes = facts.processes;
  plan.batch_size = o.train_batch_size;
  plan.accumulated_batches = o.gradient_accumulation_steps;
  plan.total_batch_size =
      times(times(o.train_batch_size, o.gradient_accumulation_steps), facts.processes);
  const int64_t steps_per_epoch =
      (facts.samples_per_epoch + plan.total_batch_size - 1) / plan.total_batch_size;
  plan.steps =
      std::min(o.max_train_steps.value_or(times(o.num_train_epochs, steps_per_epoch)), kMost);
  const bool finds_rate = o.optimizer.kind == OptimizerKind::prodigy;
  plan.learning_rate = o.learning_rate.value_or(finds_rate ? 1.0 : usual_rate);
  if (o.scale_lr) plan.learning_rate *= static_cast<double>(plan.total_batch_size);
  const auto& run = options.run;
  const bool validates = facts.held_out || run.draws();
  plan.validation_interval =
      run.validation_steps.value_or(validates ? times(run.validation_epochs, steps_per_epoch) : 0);
  const bool warms_up = o.lr_scheduler != Schedule::constant;
  if (warms_up && o.lr_warmup_steps >= plan.steps) {
    plan.notices.push_back(
        fmt::format("--lr_warmup_steps {} is no less than the run's {} steps: the rate "
                    "never reaches --learning_rate",
                    o.lr_warmup_steps, plan.steps));
  }
  options.data.resolution = plan.resolution;
  o.max_train_steps = plan.steps;
  o.learning_rate = plan.learning_rate;
  o.scale_lr = false;                          // done
  options.run.resume_from_checkpoint.clear();  // which says where a run begins, not what it is
  options.run.overwrite_output_dir = false;
}

}  // namespace

DreamBoothPlan make_plan(DreamBoothOptions options, const RunFacts& facts,
                         const lightlora::Components& start) {
  DreamBoothPlan plan;
  plan.notices = unused_flags(options);
  options.adapter = plan.adapter = with_start(options.adapter, start);
  decide(options, facts, usual_rate(options.adapter), plan);
  plan.program = "train_dreambooth_lora";
  plan.settings = settings_of(options);
  return plan;
}

Plan make_plan(InversionOptions options, const RunFacts& facts) {
  Plan plan;
  plan.notices = unused_flags(options);
  decide(options, facts, kUsualInversionRate, plan);
  plan.program = "textual_inversion";
  plan.settings = settings_of(options);
  return plan;
}

LearningRate schedule_of(const OptimizationOptions& o, const Plan& plan) {
  return {o.lr_scheduler,  plan.learning_rate, o.lr_warmup_steps, plan.steps,
          o.lr_num_cycles, o.lr_power,         o.lr_decay_steps};
}

}  // namespace training
