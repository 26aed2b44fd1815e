// SPDX-License-Identifier: Apache-2.0
#include "training/flags.h"

#include <lightlora/variants/variants.h>

#include <filesystem>

#include "images/resize.h"
#include "stable_diffusion/device.h"

namespace training {

namespace {

// The variants that a file for other programs can hold as low-rank factors.
std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const auto& variant : lightlora::variants()) {
    const auto probe = variant.make(lightlora::LoRAOptions(4), {"probe", 64, 64, {}});
    if (probe->has_factors()) names.push_back(variant.name);
  }
  return names;
}

// Light's first steps move the weights far less than Classic's at one rate: its step does not grow
// with the layer's width. These defaults are where each variant learns at about the same pace.
double usual_rate(const std::string& variant) { return variant == "classic" ? 5e-4 : 2e-3; }

void add_adapter_flags(cli::App& app, Flags& f) {
  app.group("Adapter");
  app.add_option("--variant", f.variant, "Kind of adapter")->check(cli::one_of(variant_names()));
  app.add_option("--rank", f.rank, "Rank of the trained factors")->check(cli::at_least(1));
  app.add_option("--network_alpha", f.network_alpha,
                 "Scale times rank (default: the rank, so that the scale is 1)");
  app.add_option("--init", f.init, "Which factor starts at zero")
      ->check(cli::one_of({"up_zero", "down_zero", "both_zero"}));
  app.add_option("--aux_init", f.aux_init, "Frozen bases of light and fused")
      ->check(cli::one_of({"orthogonal", "normal", "normal_scaled"}));
  app.add_option("--aux_in", f.aux_in, "Directions of the input basis")->check(cli::at_least(1));
  app.add_option("--aux_out", f.aux_out, "Directions of the output basis")->check(cli::at_least(1));
  app.add_option("--aux_seed", f.aux_seed, "Seed of the frozen bases");
  app.add_option("--split_rank", f.split_rank,
                 "Rank of the exported file of a fused adapter (default: exact, its full rank)")
      ->check(cli::at_least(1));
  app.add_option("--target_modules", f.target_modules,
                 "Layers of the UNet by name or end of name; may be repeated");
}

void add_training_flags(cli::App& app, Flags& f) {
  app.group("Training");
  app.add_option("--train_batch_size", f.train_batch_size, "Pictures per step and device")
      ->check(cli::at_least(1));
  app.add_option("--gradient_accumulation_steps", f.gradient_accumulation_steps,
                 "Batches whose gradients are averaged for one update")
      ->check(cli::at_least(1));
  app.add_option("--max_train_steps", f.max_train_steps,
                 "Updates (default: as many as num_train_epochs needs)")
      ->check(cli::at_least(1));
  app.add_option("--num_train_epochs", f.num_train_epochs, "Passes over the pictures")
      ->check(cli::at_least(1));
  app.add_option("--learning_rate", f.learning_rate,
                 "Peak learning rate (default: 5e-4 for classic, 2e-3 for light and fused)")
      ->check(cli::above(0));
  app.add_option("--lr_scheduler", f.lr_scheduler, "How the learning rate moves")
      ->check(cli::one_of(LearningRate::schedules()));
  app.add_option("--lr_warmup_steps", f.lr_warmup_steps, "Steps of rising rate (not for constant)")
      ->check(cli::at_least(0));
  app.add_option("--lr_num_cycles", f.lr_num_cycles, "Restarts of cosine_with_restarts");
  app.add_option("--lr_power", f.lr_power, "Power of polynomial");
  app.add_option("--adam_beta1", f.adam.beta1, "AdamW: decay of the mean");
  app.add_option("--adam_beta2", f.adam.beta2, "AdamW: decay of the variance");
  app.add_option("--adam_weight_decay", f.adam.weight_decay, "AdamW: weight decay");
  app.add_option("--adam_epsilon", f.adam.epsilon, "AdamW: added to the root of the variance");
  app.add_option("--max_grad_norm", f.max_grad_norm, "Largest gradient norm; 0 switches it off");
}

}  // namespace

void add_flags(cli::App& app, Flags& f) {
  app.group("Required");
  app.add_option("--pretrained_model_name_or_path", f.model,
                 "Stable Diffusion model: a folder in diffusers layout")
      ->required();
  app.add_option("--instance_data_dir", f.instance_data_dir, "Folder with the subject's pictures")
      ->required();
  app.add_option("--instance_prompt", f.instance_prompt,
                 "What they show, with a rare word for the subject, such as 'a photo of sks dog'")
      ->required();
  app.group("Files");
  app.add_option("--output_dir", f.output_dir, "Folder for the results");
  app.add_option("--resolution", f.resolution, "Side of the square crops (default: the model's)")
      ->check(cli::at_least(1));
  app.add_flag("--center_crop", f.center_crop, "Cut out the middle, not a random square");
  app.add_option("--image_interpolation_mode", f.image_interpolation_mode, "Filter for resizing")
      ->check(cli::one_of({"lanczos", "bicubic", "bilinear"}));
  add_adapter_flags(app, f);
  add_training_flags(app, f);
  app.group("Running");
  app.add_option("--seed", f.seed, "Seed of everything random; equal runs give equal bytes");
  app.add_option("--mixed_precision", f.mixed_precision,
                 "Precision of the frozen weights; adapters stay fp32")
      ->check(cli::one_of({"no", "fp16", "bf16"}));
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
}

void Flags::check() const {
  TORCH_CHECK_VALUE(!split_rank || variant == "fused",
                    "--split_rank: expected --variant fused, got ", variant,
                    "; hint: other variants are exported at their own rank");
  TORCH_CHECK_VALUE(variant != "fused" || init == "up_zero",
                    "--init: expected none with --variant fused, whose core always starts at ",
                    "zero, got ", init);
  TORCH_CHECK(std::filesystem::is_directory(instance_data_dir), "'", instance_data_dir,
              "': expected a folder with the subject's pictures, got ",
              std::filesystem::exists(instance_data_dir) ? "a file" : "nothing of that name",
              "; hint: check --instance_data_dir");
}

void Flags::resolve_steps(int64_t pictures) {
  const int64_t per_update = train_batch_size * gradient_accumulation_steps;
  if (!max_train_steps) {
    max_train_steps = num_train_epochs * ((pictures + per_update - 1) / per_update);
  }
  if (!learning_rate) learning_rate = usual_rate(variant);
}

lightlora::LoRAOptions Flags::lora_options() const {
  return lightlora::LoRAOptions(rank)
      .network_alpha(network_alpha)
      .init(lightlora::parse_init(init))
      .aux_init(lightlora::parse_aux_init(aux_init))
      .aux_in(aux_in)
      .aux_out(aux_out)
      .aux_seed(aux_seed);
}

c10::ScalarType Flags::weight_dtype() const {
  return sd::pick_dtype(mixed_precision == "no" ? "fp32" : mixed_precision);
}

LearningRate Flags::schedule() const {
  return {lr_scheduler, *learning_rate, lr_warmup_steps, *max_train_steps, lr_num_cycles, lr_power};
}

DreamBoothOptions Flags::trainer_options() const {
  DreamBoothOptions options;
  options.train_batch_size = train_batch_size;
  options.gradient_accumulation_steps = gradient_accumulation_steps;
  options.max_train_steps = *max_train_steps;
  options.seed = seed;
  options.max_grad_norm = max_grad_norm;
  options.scale_loss = mixed_precision == "fp16";
  options.adam = adam;
  return options;
}

}  // namespace training
