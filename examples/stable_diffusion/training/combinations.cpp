// SPDX-License-Identifier: Apache-2.0
// Flags that have no effect, or an odd one, beside others: said at the start of a run. What cannot
// work at all is refused by the options' own checks.
#include "support/cli/fmt.h"
#include "training/plan.h"

namespace training {

namespace {

// Collects "FLAG has no effect REASON" for each value that is not what it would be by default.
class Unused {
 public:
  void add(bool given, const char* flag, const char* reason) {
    if (given) lines_.push_back(fmt::format("{} has no effect {}", flag, reason));
  }
  void say(bool so, std::string line) {
    if (so) lines_.push_back(std::move(line));
  }
  std::vector<std::string> take() { return std::move(lines_); }

 private:
  std::vector<std::string> lines_;
};

void check_rate(const OptimizationOptions& o, Unused& unused) {
  const OptimizationOptions usual;
  unused.add(o.lr_scheduler == Schedule::constant && o.lr_warmup_steps != usual.lr_warmup_steps,
             "--lr_warmup_steps", "with --lr_scheduler constant; hint: constant_with_warmup");
  unused.add(o.lr_scheduler != Schedule::cosine_with_restarts && o.lr_num_cycles != 1,
             "--lr_num_cycles", "without --lr_scheduler cosine_with_restarts");
  unused.add(o.lr_scheduler != Schedule::warmup_stable_decay && o.lr_decay_steps != 0,
             "--lr_decay_steps", "without --lr_scheduler warmup_stable_decay");
  unused.add(o.lr_scheduler != Schedule::polynomial && o.lr_power != 1, "--lr_power",
             "without --lr_scheduler polynomial");
  const bool prodigy = o.optimizer.kind == OptimizerKind::prodigy;
  unused.say(
      prodigy && o.learning_rate && *o.learning_rate != 1,
      fmt::format("--learning_rate {} is a factor of the rate that prodigy finds; 1 is usual",
                  o.learning_rate.value_or(1)));
  unused.say(prodigy && o.scale_lr,
             "--scale_lr multiplies the factor of the rate that prodigy finds, not a rate");
}

void check_loss(const LossOptions& o, Unused& unused) {
  const LossOptions usual;
  const bool l2 = o.type == LossType::l2;
  const char* reason = "with --loss_type l2";
  unused.add(l2 && o.huber_c != usual.huber_c, "--huber_c", reason);
  unused.add(l2 && o.huber_schedule != usual.huber_schedule, "--huber_schedule", reason);
  unused.add((l2 || o.huber_schedule == HuberSchedule::snr) && o.huber_scale != usual.huber_scale,
             "--huber_scale", "with --loss_type l2 or --huber_schedule snr");
}

void check_optimizer(const OptimizerOptions& o, Unused& unused) {
  const OptimizerOptions usual;
  const auto kind = o.kind;
  const bool adam = kind == OptimizerKind::adamw || kind == OptimizerKind::prodigy;
  const bool betas = adam || kind == OptimizerKind::lion;
  unused.add(!betas && o.beta1 != usual.beta1, "--adam_beta1", "with this --optimizer");
  unused.add(!betas && o.beta2, "--adam_beta2", "with this --optimizer");
  unused.add(!adam && o.epsilon != usual.epsilon, "--adam_epsilon", "with this --optimizer");
  unused.add(kind != OptimizerKind::sgd && o.momentum != 0, "--sgd_momentum",
             "without --optimizer sgd");
  if (kind == OptimizerKind::prodigy) return;
  const char* prodigy = "without --optimizer prodigy";
  unused.add(o.beta3.has_value(), "--prodigy_beta3", prodigy);
  unused.add(o.d_coef != usual.d_coef, "--prodigy_d_coef", prodigy);
  unused.add(!o.bias_correction, "--prodigy_use_bias_correction", prodigy);
  unused.add(!o.safeguard_warmup, "--prodigy_safeguard_warmup", prodigy);
}

void check_seeing(const RunOptions& o, double validation_split, Unused& unused) {
  const RunOptions usual;
  unused.add(!o.validation_steps && !o.draws() && validation_split == 0 &&
                 o.validation_epochs != usual.validation_epochs,
             "--validation_epochs",
             "without --validation_prompt, --sample_prompts or --validation_split");
  unused.add(o.validation_prompt.empty() && o.num_validation_images != usual.num_validation_images,
             "--num_validation_images", "without --validation_prompt");
  unused.add(o.validation_steps && o.validation_epochs != usual.validation_epochs,
             "--validation_epochs", "beside --validation_steps");
  unused.add(!o.tensorboard && o.logging_dir != usual.logging_dir, "--logging_dir",
             "with --report_to none");
}

void check_prior(const PriorOptions& o, Unused& unused) {
  if (o.with_prior_preservation) return;
  const PriorOptions usual;
  const char* reason = "without --with_prior_preservation";
  unused.add(o.num_class_images != usual.num_class_images, "--num_class_images", reason);
  unused.add(o.prior_loss_weight != usual.prior_loss_weight, "--prior_loss_weight", reason);
  unused.add(o.sample_batch_size != usual.sample_batch_size, "--sample_batch_size", reason);
  unused.add(o.prior_generation_precision.has_value(), "--prior_generation_precision", reason);
}

// Dropout is of the run and not of the file; with relax_rank new adapters train in its layers.
void check_start(const AdapterOptions& o, Unused& unused) {
  const AdapterOptions usual;
  const char* reason = "beside --init_from, whose file decides";
  unused.add(o.variant != usual.variant, "--variant", reason);
  unused.add(o.target_modules != usual.target_modules, "--target_modules", reason);
  unused.add(
      o.train_text_encoder && o.text_encoder_target_modules != usual.text_encoder_target_modules,
      "--text_encoder_target_modules", reason);
  unused.add(o.train_norms, "--train_norms", reason);
  unused.add(o.train_biases, "--train_biases", reason);
  for (const auto& name : o.own.given()) unused.add(true, ("--" + name).c_str(), reason);
  unused.add(o.relax_rank && o.lora.rank() != usual.lora.rank(), "--rank", "beside --relax_rank");
  if (o.relax_rank) return;
  unused.add(o.lora.rank() != usual.lora.rank(), "--rank", reason);
  unused.add(o.lora.init() != usual.lora.init(), "--init", reason);
  unused.add(o.lora.network_alpha() != usual.lora.network_alpha(), "--network_alpha", reason);
  unused.add(!o.rank_pattern.empty(), "--rank_pattern", reason);
  unused.add(!o.alpha_pattern.empty(), "--alpha_pattern", reason);
}

void check_adapter(const AdapterOptions& o, Unused& unused) {
  const AdapterOptions usual;
  unused.add(
      !o.train_text_encoder && o.text_encoder_target_modules != usual.text_encoder_target_modules,
      "--text_encoder_target_modules", "without --train_text_encoder");
  const int64_t rank = o.lora.rank();
  constexpr int64_t kMuch = 8;  // a pair of rank r^2 has r / 2 times LoHa's values
  unused.say(o.variant == "loha" && !o.split_rank && rank > kMuch && o.init_from.empty(),
             fmt::format("the diffusers file holds LoHa as plain factors of rank {}, or full rank: "
                         "{} times its values; hint: --split_rank {} cuts them",
                         rank * rank, rank / 2, 2 * rank));
  if (!o.init_from.empty()) check_start(o, unused);
}

}  // namespace

std::vector<std::string> unused_flags(const TrainingOptions& options) {
  Unused unused;
  check_rate(options.optimization, unused);
  check_loss(options.optimization.loss, unused);
  unused.add(!options.optimization.use_ema &&
                 options.optimization.ema_decay != OptimizationOptions().ema_decay,
             "--ema_decay", "without --use_ema");
  check_optimizer(options.optimization.optimizer, unused);
  check_seeing(options.run, options.data.validation_split, unused);
  unused.add(!options.model.load.taesd().empty() && !options.run.draws(), "--taesd",
             "without --validation_prompt or --sample_prompts");
  return unused.take();
}

// A word is measured on pictures that are held out alone.
std::vector<std::string> unused_flags(const InversionOptions& options) {
  auto lines = unused_flags(static_cast<const TrainingOptions&>(options));
  Unused unused;
  unused.add(
      options.run.validation_steps && !options.run.draws() && options.data.validation_split == 0,
      "--validation_steps", "without --validation_prompt, --sample_prompts or --validation_split");
  const auto more = unused.take();
  lines.insert(lines.end(), more.begin(), more.end());
  return lines;
}

std::vector<std::string> unused_flags(const DreamBoothOptions& options) {
  Unused unused;
  const auto& o = options.optimization;
  unused.add(o.max_train_steps && o.num_train_epochs != 1, "--num_train_epochs",
             "beside --max_train_steps");
  check_prior(options.prior, unused);
  check_adapter(options.adapter, unused);
  auto lines = unused_flags(static_cast<const TrainingOptions&>(options));
  const auto more = unused.take();
  lines.insert(lines.end(), more.begin(), more.end());
  return lines;
}

}  // namespace training
