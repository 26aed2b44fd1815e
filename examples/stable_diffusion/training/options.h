// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>
#include <lightlora/options.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/model_options.h"
#include "support/cli/app.h"
#include "support/distributed/group.h"
#include "support/images/resize.h"
#include "training/captions.h"
#include "training/learning_rate.h"
#include "training/loss.h"
#include "training/optimizer.h"
#include "training/own_flags.h"

// What a training run can be told. The options are plain values with the names and defaults of
// diffusers' scripts where those have one, of kohya's sd-scripts for what only they have; `bind`
// makes flags of them that write straight into them. What a flag leaves open is decided once, by
// make_plan.

namespace training {

/// How pictures become samples.
struct DataOptions {
  std::optional<int64_t> resolution;  ///< default: the model's
  bool center_crop = false, random_flip = false;
  images::Filter image_interpolation_mode = images::Filter::kLanczos;
  bool enable_bucket = false;
  std::optional<int64_t> min_bucket_reso, max_bucket_reso, bucket_reso_steps;
  double caption_dropout_rate = 0, validation_split = 0;
  bool cache_latents = false, masked_loss = false, alpha_mask = false;
  std::string conditioning_data_dir;  ///< masks; none if empty

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
};

/// Which adapters to train, and each part's share of the learning rate.
struct AdapterOptions {
  std::string variant = "light";
  lightlora::LoRAOptions lora = lightlora::LoRAOptions(4);
  OwnFlags own;  ///< flags of single variants' options, which come on top of `lora`
  std::optional<int64_t> split_rank;
  std::vector<std::string> target_modules{"to_q", "to_k", "to_v", "to_out.0"};
  std::vector<std::string> text_encoder_target_modules{"q_proj", "k_proj", "v_proj", "out_proj"};
  /// PATTERN=NUMBER, with the library's patterns, see PathPattern.
  std::vector<std::string> rank_pattern, alpha_pattern, rate_pattern;
  std::string init_from;  ///< native file to go on from; none if empty
  std::optional<int64_t> relax_rank;

  bool train_text_encoder = false;
  bool train_norms = false, train_biases = false;  ///< whole differences, beside the adapters
  std::optional<double> text_encoder_lr, loraplus_lr_ratio;

  /// `lora` with what the flags say of the variant's own options.
  /// Errors: c10::ValueError for one that the variant does not take
  lightlora::LoRAOptions all() const;
  /// Whether files of other programs hold such adapters as low-rank factors, without being told to
  /// cut them.
  bool exports_factors() const;
  /// Errors: c10::ValueError for values that do not go together or do not parse
  void check() const;
};

/// How long, how fast and on what loss to train.
struct OptimizationOptions {
  int64_t train_batch_size = 4, gradient_accumulation_steps = 1, num_train_epochs = 1;
  std::optional<int64_t> max_train_steps;
  bool gradient_checkpointing = false, batch_invariant = false;

  std::optional<double> learning_rate;
  bool scale_lr = false;
  Schedule lr_scheduler = Schedule::constant;
  int64_t lr_warmup_steps = 500, lr_decay_steps = 0;
  double lr_num_cycles = 1, lr_power = 1;

  OptimizerOptions optimizer;
  double max_grad_norm = 1.0;
  bool use_ema = false;  ///< save and show a moving average of what trains
  double ema_decay = 0.9999;
  LossOptions loss;
};

/// What a run saves and shows on its way.
struct RunOptions {
  std::string output_dir;
  bool overwrite_output_dir = false;
  int64_t checkpointing_steps = 500;
  std::optional<int64_t> checkpoints_total_limit;
  std::string resume_from_checkpoint;

  bool tensorboard = true;
  std::string logging_dir = "logs";
  std::string validation_prompt, sample_prompts;
  int64_t num_validation_images = 4, validation_epochs = 50;
  std::optional<int64_t> validation_steps;

  /// Whether pictures are drawn on the way.
  bool draws() const { return !validation_prompt.empty() || !sample_prompts.empty(); }
  /// Where TensorBoard's files go; empty for none.
  std::string tensorboard_folder() const;
};

/// Where and how exactly to compute.
struct MachineOptions {
  uint64_t seed = 0;
  bool new_seed = false;  ///< `settle_seed` is to draw one
  /// Of the frozen weights; none: `settle_precision` is to choose one.
  std::optional<c10::ScalarType> mixed_precision = c10::kFloat;
  std::string device = "auto";  ///< see sd::pick_device
  bool allow_tf32 = false;
  bool deterministic = false;  ///< equal bytes for equal runs on a GPU too
  bool allow_large = false;    ///< no limits of `check_limits`
  // What diffusers asks for and what is so here anyway.
  bool enable_xformers_memory_efficient_attention = false;
  int64_t dataloader_num_workers = 0;
  bool like_a_cpu = false;  ///< on a device that stands in for a CPU, as in dry_run

  /// `mixed_precision`, for after it is settled.
  c10::ScalarType precision() const { return mixed_precision.value(); }
};

/// The words of `--mixed_precision`.
cli::Choices<std::optional<c10::ScalarType>> precision_choices();

/// What every run that learns from pictures is told, whatever it learns.
struct TrainingOptions {
  sd::ModelOptions model;
  DataOptions data;
  OptimizationOptions optimization;
  RunOptions run;
  MachineOptions machine;
  distributed::GroupOptions group;

  /// How to load the model with its weights in this precision.
  /// Errors: those of sd::pick_device
  sd::StableDiffusionOptions pipeline_options(c10::ScalarType dtype) const;
};

/// Pictures of the subject's class, so that the class stays as it was.
struct PriorOptions {
  bool with_prior_preservation = false;
  std::string class_data_dir, class_prompt;
  int64_t num_class_images = 100, sample_batch_size = 4;
  double prior_loss_weight = 1;
  std::optional<c10::ScalarType> prior_generation_precision;  ///< default: that of training

  void check() const;
};

/// train_dreambooth_lora.
struct DreamBoothOptions : TrainingOptions {
  std::string instance_data_dir, instance_prompt;
  std::string dataset_config;  ///< in their place, see read_dataset_config; none if empty
  std::vector<std::string> learned_embeds;
  PriorOptions prior;
  AdapterOptions adapter;
  bool pre_compute_text_embeddings = false;
  int64_t clip_skip = 0;
  int64_t max_token_length = 75;   ///< of captions: 75, 150 or 225
  std::optional<bool> cuda_graph;  ///< default: with a GPU

  DreamBoothOptions() { run.output_dir = "lora-dreambooth-model"; }

  /// Errors: c10::ValueError for values that do not go together; c10::Error without the pictures'
  /// folder
  void check() const;
};

/// textual_inversion.
struct InversionOptions : TrainingOptions {
  std::string train_data_dir, placeholder_token, initializer_token;
  Property learnable_property = Property::object;
  int64_t num_vectors = 1, repeats = 100, save_steps = 500;
  bool layerwise = false, save_as_full_pipeline = false;
  std::optional<bool> cuda_graph;  ///< default: with a GPU

  InversionOptions();

  /// Errors: c10::ValueError for values that do not go together
  void check() const;
};

/// Numbers far beyond what a run can need are slips of the keyboard, or a stranger's configuration.
/// Errors: c10::ValueError naming the flag for such a number, unless `allow_large` is given
void check_limits(const TrainingOptions& options);
void check_limits(const DreamBoothOptions& options);
void check_limits(const InversionOptions& options);
/// What a run writes, such as its contact sheet, must not be among the pictures of the next one.
/// Errors: c10::ValueError naming the flag and the folder if the two folders are one
void check_apart(const std::string& flag, const std::string& pictures,
                 const std::string& output_dir);
/// Of one size in pixels; `what` names it.
void check_picture_size(const std::string& what, int64_t width, int64_t height);

void bind(cli::App& app, DataOptions& options);
void bind(cli::App& app, AdapterOptions& options);
void bind(cli::App& app, OptimizationOptions& options);
void bind(cli::App& app, RunOptions& options);
void bind(cli::App& app, MachineOptions& options);
void bind_cuda_graph(cli::App& app, std::optional<bool>& choice);
/// All flags of a program.
void bind(cli::App& app, DreamBoothOptions& options);
void bind(cli::App& app, InversionOptions& options);

/// What a program's flags would hold with these options.
template <typename Options>
std::vector<cli::Setting> settings_of(Options options) {
  cli::App app("", "", "");
  bind(app, options);
  return app.settings();
}

}  // namespace training
