// SPDX-License-Identifier: Apache-2.0
// The flags that all trainers share; those of one program are in dreambooth_options.cpp and
// inversion_options.cpp.
#include "training/options.h"

#include <ATen/Context.h>

#include <filesystem>

#include "pipeline/device.h"

namespace training {

namespace {

const cli::Choices<bool> kTrueOrFalse{{"true", true}, {"false", false}};

void bind_loss(cli::App& app, LossOptions& o) {
  app.add_option("--snr_gamma,--min_snr_gamma", o.snr_gamma,
                 "Weight timesteps by min(snr, gamma) / snr; 5 is usual; also --min_snr_gamma "
                 "(default: all "
                 "alike)")
      ->check(cli::above(0));
  app.add_flag("--debiased_estimation_loss", o.debiased_estimation,
               "Weight timesteps by 1 / sqrt(snr), for models that predict v by 1 / (snr + 1)");
  app.add_choice(
      "--loss_type", o.type,
      {{"l2", LossType::l2}, {"huber", LossType::huber}, {"smooth_l1", LossType::smooth_l1}},
      "How far a prediction is from its target; huber and smooth_l1 follow single pixels "
      "that are far off less");
  app.add_choice("--huber_schedule", o.huber_schedule,
                 {{"exponential", HuberSchedule::exponential},
                  {"snr", HuberSchedule::snr},
                  {"constant", HuberSchedule::constant}},
                 "How huber_c depends on the timestep");
  app.add_option("--huber_c", o.huber_c, "Where huber and smooth_l1 turn from square to straight")
      ->check(cli::above(0));
  app.add_option("--huber_scale", o.huber_scale, "Factor of huber_c (not with snr)")
      ->check(cli::above(0));
  app.add_option("--noise_offset", o.noise_offset,
                 "Size of noise that a whole channel shares, for very dark and bright pictures")
      ->check(cli::at_least(0));
}

void bind_length(cli::App& app, OptimizationOptions& o) {
  app.group("Training");
  app.add_option("--train_batch_size", o.train_batch_size, "Pictures per step and device")
      ->check(cli::at_least(1));
  app.add_option("--gradient_accumulation_steps", o.gradient_accumulation_steps,
                 "Batches whose gradients are averaged for one update")
      ->check(cli::at_least(1));
  app.add_flag("--gradient_checkpointing", o.gradient_checkpointing,
               "Compute activations again in the backward pass: slower, in far less memory");
  app.add_flag(
      "--batch_invariant", o.batch_invariant,
      "Compute the samples of a batch one by one: slower, but any number of processes that "
      "shares a batch learns the same bits");
  app.add_option("--max_train_steps", o.max_train_steps,
                 "Updates (default: as many as num_train_epochs needs)")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--num_train_epochs", o.num_train_epochs, "Passes over the pictures")
      ->check(cli::at_least(1))
      ->free_on_resume()
      ->overrules("--max_train_steps");
  bind_loss(app, o.loss);
}

void bind_rate(cli::App& app, OptimizationOptions& o) {
  app.group("Learning rate");
  app.add_option("--learning_rate", o.learning_rate,
                 "Peak learning rate (default: 5e-4 for classic, 2e-3 for other adapters, 1e-4 for "
                 "words; 1 with prodigy)")
      ->check(cli::above(0));
  app.add_flag("--scale_lr", o.scale_lr,
               "Multiply it by batch size, accumulation steps and processes");
  app.add_choice("--lr_scheduler", o.lr_scheduler, schedule_choices(),
                 "How the learning rate moves");
  app.add_option("--lr_warmup_steps", o.lr_warmup_steps, "Steps of rising rate (not for constant)")
      ->check(cli::at_least(0));
  app.add_option("--lr_decay_steps", o.lr_decay_steps,
                 "Last steps of falling rate of warmup_stable_decay")
      ->check(cli::at_least(0));
  app.add_option("--lr_num_cycles", o.lr_num_cycles, "Restarts of cosine_with_restarts")
      ->check(cli::at_least(0));
  app.add_option("--lr_power", o.lr_power, "Power of polynomial")->check(cli::at_least(0));
}

void bind_optimizer(cli::App& app, OptimizationOptions& o) {
  app.group("Optimizer");
  app.add_choice("--optimizer", o.optimizer.kind, optimizer_choices(), "Optimizer");
  app.add_option("--adam_beta1", o.optimizer.beta1, "adamw, lion, prodigy: decay of the mean")
      ->check(cli::below(0, 1));
  app.add_option("--adam_beta2", o.optimizer.beta2,
                 "adamw, lion, prodigy: decay of the variance (default: 0.999, lion 0.99)")
      ->check(cli::below(0, 1));
  app.add_option("--adam_weight_decay", o.optimizer.decay,
                 "Weight decay (default: 0.01; adafactor and sgd 0)")
      ->check(cli::at_least(0));
  app.add_option("--adam_epsilon", o.optimizer.epsilon,
                 "adamw, prodigy: added to the root of the variance")
      ->check(cli::at_least(0));
  app.add_flag(
      "--use_ema", o.use_ema,
      "Save, validate and show a moving average of what trains, which is smoother than the "
      "last step");
  app.add_option("--ema_decay", o.ema_decay,
                 "Its decay; less in the first steps: n / (n + 9) after n of them")
      ->check(cli::between(0, 1));
  app.add_option("--max_grad_norm", o.max_grad_norm, "Largest gradient norm; 0 switches it off")
      ->check(cli::at_least(0));
  app.add_option("--sgd_momentum", o.optimizer.momentum, "sgd: share of the last direction kept")
      ->check(cli::at_least(0));
  app.add_option("--prodigy_beta3", o.optimizer.beta3,
                 "prodigy: decay of what it finds the rate from (default: the root of beta2)")
      ->check(cli::below(0, 1));
  app.add_option("--prodigy_d_coef", o.optimizer.d_coef, "prodigy: factor of the rate it finds")
      ->check(cli::above(0));
  app.add_choice("--prodigy_use_bias_correction", o.optimizer.bias_correction, kTrueOrFalse,
                 "prodigy: Adam's bias correction");
  app.add_choice("--prodigy_safeguard_warmup", o.optimizer.safeguard_warmup, kTrueOrFalse,
                 "prodigy: leave the warm-up out of what it finds the rate from");
}

}  // namespace

void bind(cli::App& app, OptimizationOptions& options) {
  bind_length(app, options);
  bind_rate(app, options);
  bind_optimizer(app, options);
}

void bind(cli::App& app, DataOptions& o) {
  app.group("Pictures");
  app.add_option("--resolution", o.resolution, "Side of the square crops (default: the model's)")
      ->check(cli::at_least(8));
  app.add_flag("--center_crop", o.center_crop, "Cut out the middle, not a random square");
  app.add_flag("--random_flip", o.random_flip, "Mirror every second sample, at random");
  app.add_choice("--image_interpolation_mode", o.image_interpolation_mode,
                 {{"lanczos", images::Filter::kLanczos},
                  {"bicubic", images::Filter::kBicubic},
                  {"bilinear", images::Filter::kBilinear}},
                 "Filter for resizing");
  app.add_flag("--enable_bucket", o.enable_bucket,
               "Keep about the pictures' own shapes: aspect-ratio buckets instead of squares");
  app.add_option("--min_bucket_reso", o.min_bucket_reso,
                 "Shortest side of a bucket (default: half the resolution)")
      ->check(cli::at_least(8));
  app.add_option("--max_bucket_reso", o.max_bucket_reso,
                 "Longest side of a bucket (default: twice the resolution)")
      ->check(cli::at_least(8));
  app.add_option("--bucket_reso_steps", o.bucket_reso_steps,
                 "Sides of buckets are multiples of it, a multiple of 8 (default: an eighth of the "
                 "resolution)")
      ->check(cli::at_least(8));
  app.add_option("--caption_dropout_rate", o.caption_dropout_rate,
                 "Share of samples that train without a caption, 0 to 1")
      ->check(cli::between(0, 1));
  app.add_option("--validation_split", o.validation_split,
                 "Share of the pictures that are kept out of training, for the validation loss")
      ->check(cli::between(0, 1));
  app.add_flag(
      "--masked_loss", o.masked_loss,
      "Learn only what a mask shows in white: pictures of --conditioning_data_dir, or else "
      "the pictures' own transparency");
  app.add_flag("--alpha_mask", o.alpha_mask, "The pictures' transparency is their mask");
  app.add_option("--conditioning_data_dir", o.conditioning_data_dir,
                 "Folder with a mask for each picture, under its name")
      ->free_on_resume();
  app.add_flag("--cache_latents", o.cache_latents,
               "Encode each picture once, with one crop, and drop the autoencoder");
}

void bind(cli::App& app, RunOptions& o) {
  app.group("Files");
  app.add_option("--output_dir", o.output_dir, "Folder for the results")->free_on_resume();
  app.add_flag("--overwrite_output_dir", o.overwrite_output_dir,
               "Begin anew in a folder that holds the results of an earlier run, which are removed")
      ->free_on_resume();
  app.add_option("--checkpointing_steps", o.checkpointing_steps,
                 "Save a checkpoint, from which a run can go on, after so many steps")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--checkpoints_total_limit", o.checkpoints_total_limit,
                 "Keep only so many checkpoints (default: all)")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--resume_from_checkpoint", o.resume_from_checkpoint,
                 "Go on from a checkpoint: 'latest', a name as checkpoint-500, or a folder")
      ->free_on_resume();
  app.group("Seeing it");
  app.add_choice("--report_to", o.tensorboard, {{"tensorboard", true}, {"none", false}},
                 "Besides metrics.jsonl, also write files for this")
      ->free_on_resume();
  app.add_option("--logging_dir", o.logging_dir,
                 "Folder for TensorBoard's files, inside the output folder")
      ->free_on_resume();
  app.add_option("--validation_prompt", o.validation_prompt,
                 "Prompt to sample during training, always from the same noise")
      ->free_on_resume();
  app.add_option("--sample_prompts", o.sample_prompts,
                 "File of prompts to sample, one a line, as sd-scripts has it: behind the prompt "
                 "--n negative, --w, --h, --d seed, --l guidance, --s steps; or its .toml, .json")
      ->free_on_resume();
  app.add_option("--num_validation_images", o.num_validation_images, "How many pictures of it")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--validation_epochs", o.validation_epochs,
                 "Validate (pictures, and a loss of fixed noise) after so many epochs")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--validation_steps", o.validation_steps, "Validate after so many steps instead")
      ->check(cli::at_least(1))
      ->free_on_resume();
}

void bind(cli::App& app, MachineOptions& o) {
  app.add_seed("--seed", o.seed, o.new_seed,
               "Seed of everything random; equal runs give equal bytes, on a GPU with "
               "--deterministic; -1 is a new one, printed");
  app.add_choice(
      "--mixed_precision", o.mixed_precision, precision_choices(),
      "Precision of the frozen weights; what trains stays fp32; auto: bf16 on a GPU that "
      "multiplies it, fp16 on an older one, fp32 on a CPU");
  app.add_option("--device", o.device, "Where to compute")
      ->check(cli::one_of(sd::device_names()))
      ->free_on_resume();
  app.add_flag("--allow_tf32", o.allow_tf32,
               "On NVIDIA GPUs since Ampere, multiply fp32 matrices in TF32: faster, less exact");
  app.add_flag("--deterministic", o.deterministic,
               "On a GPU, take algorithms that give equal bytes for equal runs; slower")
      ->free_on_resume();
  app.add_flag("--enable_xformers_memory_efficient_attention",
               o.enable_xformers_memory_efficient_attention,
               "diffusers' flag; attention saves memory anyway")
      ->free_on_resume();
  app.add_option("--dataloader_num_workers", o.dataloader_num_workers,
                 "diffusers' flag; pictures are read by the process that trains")
      ->check(cli::at_least(0))
      ->free_on_resume();
  app.add_flag("--allow_large", o.allow_large,
               "Lift the limits of pictures of 4096x4096 pixels, 256 in a batch, 100 validation "
               "pictures, and prompts of 20,000 bytes")
      ->free_on_resume();
  for (const char* flag : {"--push_to_hub", "--hub_token", "--hub_model_id"}) {
    app.absent(flag, "nothing is sent anywhere; upload the output folder yourself");
  }
  app.absent("--revision", "the model is a folder or file on this machine");
  app.absent("--tokenizer_name", "the tokenizer is the model's own");
  app.absent("--local_rank", "torchrun and mpirun tell it through the environment");
}

cli::Choices<std::optional<c10::ScalarType>> precision_choices() {
  return {
      {"auto", std::nullopt}, {"no", c10::kFloat}, {"fp16", c10::kHalf}, {"bf16", c10::kBFloat16}};
}

void bind_cuda_graph(cli::App& app, std::optional<bool>& choice) {
  app.add_choice("--cuda_graph", choice, {{"auto", std::nullopt}, {"on", true}, {"off", false}},
                 "Record forward and backward once and replay them: saves a GPU's waiting for "
                 "launches (auto: with a GPU)");
}

void DataOptions::check() const {
  TORCH_CHECK_VALUE(masked_loss || conditioning_data_dir.empty(),
                    "--conditioning_data_dir: expected --masked_loss beside it, got none");
  TORCH_CHECK_VALUE(enable_bucket || (!min_bucket_reso && !max_bucket_reso && !bucket_reso_steps),
                    "--min_bucket_reso, --max_bucket_reso, --bucket_reso_steps: expected ",
                    "--enable_bucket beside them, got none");
  TORCH_CHECK_VALUE(!bucket_reso_steps || *bucket_reso_steps % 8 == 0,
                    "--bucket_reso_steps: expected a multiple of 8, got ", *bucket_reso_steps);
}

std::string RunOptions::tensorboard_folder() const {
  return tensorboard ? (std::filesystem::path(output_dir) / logging_dir).string() : "";
}

sd::StableDiffusionOptions TrainingOptions::pipeline_options(c10::ScalarType dtype) const {
  if (machine.deterministic) sd::use_deterministic_algorithms();
  if (machine.allow_tf32) at::globalContext().setAllowTF32CuBLAS(true);
  auto options = sd::load_beside(run.output_dir, model);
  const bool saves_memory = optimization.gradient_checkpointing;
  if (saves_memory && options.pack_weights() == sd::PackWeights::if_small) {
    options.pack_weights(sd::PackWeights::off);
  }
  return options.device(sd::pick_device(machine.device)).dtype(dtype);
}

}  // namespace training
